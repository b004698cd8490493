"""What a packed data set says about itself: ``manifest.json``."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from essa_dist.errors import DataError, UsageError
from essa_dist.settings import Config

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.arrow"
FORMAT_VERSION: Literal[2] = 2

QUARANTINE_FILE = "quarantine.csv"
"""Columns ``path`` and ``reason``: what was left out. Absent where nothing was."""

REPORT_FILE = "report.html"
"""The page about the set."""

UNLABELLED = "unlabelled"
"""Name of the split, and of the entry in ``counts``, of samples without a label."""


class Shard(Config):
    """One tar file."""

    file: str
    """Path from the manifest's folder, or an absolute path or URL where the tar was indexed in its place."""
    split: str
    count: int
    """Samples."""
    bytes: int
    """Size of the whole tar; compared with the file when the set is opened."""
    sha256: str


class Manifest(Config):
    """Identity, contents and provenance of a packed data set."""

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    label_kind: Literal["none", "single", "multi"]
    """Whether a sample has no label, one class, or any number of classes at once."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them, a multi-label one flag for each of them."""
    mask_classes: tuple[str, ...] = ()
    """Names of the values of segmentation masks, ``background`` first; empty: no masks."""
    splits: tuple[str, ...]
    shards: tuple[Shard, ...]
    """Split after split."""
    counts: dict[str, dict[str, int]]
    """Samples by split and class (each of its classes, where there may be several); those without under ``unlabelled``."""
    samples: dict[str, int]
    """Samples by split."""
    patients: dict[str, int] = Field(default={})
    """Different patients by split; empty where patients are not known."""
    bits: dict[str, int]
    """Samples by bit depth as stored: ``8``, ``16``."""
    mean: tuple[float, float, float]
    """Per channel, of all pixels as they are shown (16-bit ones in the sample's own window), on the scale 0..1."""
    std: tuple[float, float, float]
    source: str
    licence: str
    attribution: str
    skipped: dict[str, int]
    """Samples and files left out, by reason; each is named in ``quarantine.csv``."""
    index_sha256: str = ""
    """Of ``index.arrow``, filled in by :meth:`write`; compared when it is fetched and by `essa data verify`, not at each
    opening, which maps the file without reading it."""

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json``, beside the index if there is one."""
        whole = self
        if (folder / INDEX_FILE).exists():
            with (folder / INDEX_FILE).open("rb") as index:
                whole = self.model_copy(
                    update={"index_sha256": hashlib.file_digest(index, "sha256").hexdigest()}
                )
        (folder / MANIFEST_FILE).write_text(whole.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises UsageError where ``folder`` is no packed data set, DataError where its manifest can't be understood.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}; give a packed data set, as written by `essa pack`")
    if not path.is_file():
        raise UsageError(
            f"{folder} is not a packed data set (no {MANIFEST_FILE}); make one: essa pack {folder} out=DIR"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format_version {version}, this program reads {FORMAT_VERSION}: pack the data again, "
                f"or keep its tars: essa pack index {folder}"
            )
        return Manifest.model_validate(fields)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}): pack the data again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; pack the data again") from error
