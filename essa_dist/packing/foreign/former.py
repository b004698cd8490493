"""What an earlier manifest in the folder still tells: an older format's, or one whose index is lost."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from essa_dist.data.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from essa_dist.errors import DataError, UsageError

logger = logging.getLogger(__name__)

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled"), "unlabelled"),
}
"""Words in the name of a tar that tell its split."""


@dataclass(frozen=True)
class Former:
    """Empty where there was no manifest, or none that can be read."""

    name: str = ""
    source: str = ""
    licence: str = ""
    attribution: str = ""
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    patients: bool = False
    splits: Mapping[str, str] = field(default_factory=dict)
    """By file."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """By file."""


def read_former(folder: Path) -> Former:
    """The manifest of ``folder``, of any format, as far as it can be understood."""
    try:
        fields = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        shards = [
            (str(shard["file"]), str(shard["split"]), str(shard["sha256"])) for shard in fields["shards"]
        ]
        texts = {key: str(fields.get(key, "")) for key in ("name", "source", "licence", "attribution")}
        former = Former(
            **texts,
            classes=_names(fields.get("classes")),
            mask_classes=_names(fields.get("mask_classes")),
            patients=bool(fields.get("patients")),
            splits={file: split for file, split, _ in shards},
            sha256={file: sha256 for file, _, sha256 in shards},
        )
    except FileNotFoundError:
        return Former()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning(
            "%s can't be read, so splits and classes come from the tars alone", folder / MANIFEST_FILE
        )
        return Former()
    logger.info("%s: names, splits and classes are taken from it", folder / MANIFEST_FILE)
    return former


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` is a data set that can be opened as it is."""
    try:
        read_manifest(folder)
    except (DataError, UsageError):
        return False
    return (folder / INDEX_FILE).is_file()


def shard_splits(files: Mapping[str, str], globs: Mapping[str, str], former: Former) -> dict[str, str | None]:
    """The split of each tar, None: not told. ``files``: short name of each tar by its path or URL.

    Raises UsageError where some tell it and others don't, for then the rest would be mixed into one of theirs.
    """
    found = {shard: _split(shard, short, globs, former) for shard, short in files.items()}
    told = {split for split in found.values() if split}
    silent = next((shard for shard, split in found.items() if not split), None)
    if told and silent is not None:
        example = "{" + f'"{Path(silent).name}": SPLIT' + "}"
        raise UsageError(
            f"{silent}: which of the splits {', '.join(sorted(told))} is it? Name it, as splits='{example}'"
        )
    return found


def _split(shard: str, short: str, globs: Mapping[str, str], former: Former) -> str | None:
    if globs:
        names = (short, Path(short).name, shard)
        return next(
            (split for glob, split in globs.items() if any(fnmatch(name, glob) for name in names)), None
        )
    if short in former.splits:
        return former.splits[short]
    words = re.split(r"[^a-z]+", short.lower().removesuffix(".tar"))
    return next((WORDS[word] for word in words if word in WORDS), None)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value or ())
