"""Any images for inference: a packed set, or files of any format that ``essa pack`` reads."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from essa_dist.data.manifest import MANIFEST_FILE
from essa_dist.data.pixels import Window
from essa_dist.data.quota import BadQuota
from essa_dist.data.remote import CacheConfig
from essa_dist.data.remote.urls import is_url
from essa_dist.data.shards import place_of
from essa_dist.errors import UsageError
from essa_dist.inference.files import FileImages, listed, walked
from essa_dist.inference.interface import Images
from essa_dist.inference.packed import open_splits
from essa_dist.packing.readers import ReadConfig
from essa_dist.settings import Config


class ImagesConfig(Config):
    """Which images, and how they are read."""

    images: str | tuple[str, ...]
    """A packed set as DIR, DIR:split or address (without a split all of them), a folder of images of any format that
    `essa pack` reads, a list of them (a CSV, TSV or Parquet table with a column `path`, or a .txt with one path a line,
    from the folder of the list), an image, or several as [a.dcm, b.png]."""
    read: ReadConfig = ReadConfig()
    """Files: how medical formats are read."""
    cache: CacheConfig = CacheConfig()
    """How remote images are fetched, and kept on this machine."""
    quota: BadQuota = BadQuota()
    """How many images may be unreadable; they are left out and named in `quarantine.csv`."""
    workers: int = Field(default=2, ge=1)
    """Threads that read and decode, in each process."""


class OutConfig(Config):
    """Where results go, and with what they are computed."""

    out: str
    """Folder to write; it must not exist, unless resume or overwrite says otherwise."""
    resume: bool = False
    """Go on in `out` after the parts that are finished; start where there are none."""
    overwrite: bool = False
    """Delete what an earlier call wrote into `out` first."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: under autocast, faster where the hardware has it, with about three digits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("resume=true and overwrite=true contradict each other: choose one")
        return self


def open_images(config: ImagesConfig, window: Window) -> Images:
    """The source that ``config.images`` names, shown through ``window``.

    Raises UsageError for a path that is not there or a split that the set doesn't have, DataError where there are no
    images or a shard is damaged.
    """
    ref, limits = config.images, None if window == "header" else window
    if isinstance(ref, tuple):
        return FileImages([(path, Path(path)) for path in ref], config.read, limits)
    if is_url(ref) or (Path(place_of(ref)) / MANIFEST_FILE).is_file():
        return open_splits(ref, limits, config.cache)
    path = Path(ref).expanduser()
    if not path.exists():
        raise UsageError(
            f"images={ref} is not there: give a packed set, a folder, an image or a list of images"
        )
    return FileImages(walked(path) if path.is_dir() else listed(path), config.read, limits)
