"""What one rank makes of the run's own words: settings, trunk, data, folder."""

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from essa_dist.errors import EssaError, UsageError, WeightsError

if TYPE_CHECKING:
    from essa_dist.config import RunConfig

log = logging.getLogger(__name__)

_CHUNK = 4 << 20
_CHUNKS = 64  # of a large file: 256 MiB take a second or two, the 4.5 GB of a ViT-g would take up the minute
_SEEN_S = 3.0  # a network file system shows a new file a little later to others
MISSING = "???"


class RunFacts(BaseModel):
    settings: dict[str, str] = {}
    """The resolved config, key paths to values as text."""
    batch_size: int | None = None
    accumulate: int = 1
    trunk: str | None = None
    """Hash of the pretrained weights; None: not looked at, or random."""
    data: str | None = None
    """Hash of the training set's manifest; None: tars without one."""
    sees_out: bool | None = None
    """Whether the file that rank 0 wrote where the run's folder will be is there; None: rank 0 wrote none."""
    failures: list[str] = []
    """What could not be read, one line each, with the remedy."""


def read_run(words: Sequence[str]) -> "RunConfig":
    """The settings that ``essa adapt`` would make of ``words``, which may leave out where to. Raises UsageError."""
    from essa_dist.config import RunConfig
    from essa_dist.settings import load

    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if len(files) > 1:
        raise UsageError(f"{files[1]!r} is one word too many; settings are written key=value")
    try:
        return load(RunConfig, Path(files[0]) if files else None, overrides, partial=True)
    except UsageError as error:
        lines = [line for line in str(error).splitlines() if not line.startswith("out: needed")]
        raise UsageError("\n".join(lines)) from None


def run_facts(config: "RunConfig", stage: Callable[[str], None], *, first_on_node: bool) -> RunFacts:
    """Read what the run would read; ``stage`` is told before each part, for a part may hang.

    Weights are read once on a node, by ``first_on_node``.
    """
    failures: list[str] = []
    trunk = data = None
    if first_on_node:
        with _noting(failures):
            stage(f"reading the weights, backbone.weights={config.backbone.weights}")
            trunk = _trunk(config)
    if config.data.train:
        with _noting(failures):
            stage(f"opening data.train={config.data.train}")
            data = _data(config)
    return RunFacts(
        settings=flat(config.model_dump(mode="json")),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        trunk=trunk,
        data=data,
        failures=failures,
    )


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Errors that a user can meet become a line; the other parts are still looked at."""
    try:
        yield
    except (EssaError, OSError) as error:
        failures += str(error).splitlines()[:1]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` as ``{"a.b": "1"}``."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _trunk(config: "RunConfig") -> str | None:
    from essa_dist.backbones.weights import parameters_sha256

    weights = config.backbone.weights
    if weights == "random":
        return None
    if weights != "auto":
        return path_sha256(Path(weights).expanduser())
    from essa_dist.backbones import build_backbone

    # Hub, its cache or an embedded file: which of them a host takes is what may differ.
    return parameters_sha256(build_backbone(config.backbone, seed=config.seed))


def _data(config: "RunConfig") -> str | None:
    from essa_dist.engine.adapt import open_training_images
    from essa_dist.engine.train import identity

    return identity(open_training_images(config.data))["data_manifest_sha256"]


def path_sha256(path: Path) -> str:
    """Tells weights apart: hash over a file, or the files of a folder; of large ones over size and 64 pieces."""
    if not path.exists():
        raise WeightsError(
            f"backbone.weights={path} is not here: copy it to every host, or to a shared folder"
        )
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(_file_digest(file))
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _CHUNK * _CHUNKS:
            starts = list(range(0, size, _CHUNK))
        else:
            starts = [round(i * (size - _CHUNK) / (_CHUNKS - 1)) for i in range(_CHUNKS)]
        for start in starts:
            file.seek(start)
            digest.update(file.read(_CHUNK))
    return digest.digest()


def write_token(out: str) -> Path:
    """An empty file where the run's folder is, or in the nearest folder above that exists. Raises OSError."""
    folder = Path(out).absolute()
    while not folder.is_dir():
        folder = folder.parent
    token = folder / f".essa-doctor-{uuid.uuid4().hex}"
    token.touch(exist_ok=False)
    return token


def sees(token: Path) -> bool:
    """Whether the token of rank 0 is here, or appears within a few seconds."""
    end = time.monotonic() + _SEEN_S
    while not token.exists():
        if time.monotonic() > end:
            return False
        with suppress(OSError):  # listing the folder makes a network file system look again
            os.listdir(token.parent)
        time.sleep(0.1)
    return True
