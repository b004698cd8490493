"""What a user may say about a pack."""

from typing import Literal

from pydantic import Field, field_validator

from essa_dist.data.quota import BadQuota
from essa_dist.packing.guards.config import GuardConfig
from essa_dist.packing.guards.fingerprint import BLANK_SPREAD
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.readers import ReadConfig
from essa_dist.settings import Config


class Places(Config):
    """From where to where."""

    src: str
    """A folder of images, a list of them (CSV, TSV, Parquet), or the folder of a published data set: see `layout`."""
    out: str
    """Folder to write; it must not exist, or see `overwrite`. A pack that was broken off goes on when it is started
    again: what is finished lies in `.OUT.partial` beside it."""


class Making(Config):
    """How samples are read, stored, divided and guarded."""

    name: str | None = None
    """Name of the data set; none: the name of `out`."""
    source: str = ""
    """Where the images come from, for the manifest."""
    licence: str = ""
    """Licence of the images, for the manifest."""
    attribution: str = ""
    """Whom to name, for the manifest."""
    read: ReadConfig = ReadConfig()
    """How medical formats are read."""
    image_size: int | None = Field(default=None, ge=8)
    """Pixels: an image whose short side is longer is reduced to this, its aspect kept; none: never."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """Every 8-bit image is stored as JPEG of this quality; none: JPEG, PNG and WebP files that need no change are
    stored byte for byte, other formats as PNG, reduced JPEG files at 95."""
    depth: Literal["keep", 8] = "keep"
    """keep: 16-bit values are stored as they are, and shown through a window when they are decoded; 8: they are stored
    as shown in their own window, which takes a third of the space and can't be undone."""
    blank: float = Field(default=BLANK_SPREAD, ge=0)
    """Grey levels of 255: an image whose shown values have a smaller standard deviation shows nothing and is left out;
    0: none is."""
    keys: Literal["path", "hash"] = "path"
    """Names of the samples. path: made from the file's path; hash: 20 hexadecimal digits of BLAKE2b over `seed` and that
    path, where file names tell who a patient is. Who has the files can still match them: keep such a seed to yourself."""
    splits: dict[str, float] = Field(default={})
    """Fractions into which images without a split of their own are divided, at random within each class and never
    within a patient, e.g. `{train: 0.8, test: 0.2}`; the sum is 1. Empty: `train` where there are labels, else
    `unlabelled`."""
    seed: int = 0
    """Of the division into splits and of the order in which samples are stored."""
    shard_bytes: int = Field(default=256_000_000, ge=20_000)
    """Largest tar."""
    guards: GuardConfig = GuardConfig()
    """What is done about patients and duplicates in two splits."""
    report: bool = True
    """Write `report.html`, a page about the data."""
    quota: BadQuota = BadQuota()
    """How many files may be unreadable; they are left out and named in `quarantine.csv`. Blank images don't count."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read and encode; 0: this one, where a file that crashes its decoder ends the pack. auto: one for
    each CPU, and 0 for less than 32 MB of files."""
    overwrite: bool = False
    """Replace `out` where it is a packed data set."""

    @field_validator("splits")
    @classmethod
    def _whole(cls, splits: dict[str, float]) -> dict[str, float]:
        if splits and (min(splits.values()) <= 0 or abs(sum(splits.values()) - 1) > 1e-6):
            raise ValueError(
                f"fractions must be positive and sum to 1, got a sum of {sum(splits.values()):g}"
            )
        return splits

    @field_validator("workers")
    @classmethod
    def _countable(cls, workers: int | Literal["auto"]) -> int | Literal["auto"]:
        if workers != "auto" and workers < 0:
            raise ValueError(f"must be a number of processes, 0 or auto, got {workers}")
        return workers


class PackConfig(Making, LayoutConfig, Places):  # the bases from right to left are the order of --help
    """What to pack and how. Needs `src` and `out`."""
