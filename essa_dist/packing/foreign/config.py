"""The settings of ``essa pack index``."""

from typing import Literal

from pydantic import Field, field_validator

from essa_dist.data.quota import BadQuota
from essa_dist.settings import Config


class IndexConfig(Config):
    """Which tars to index and how to read them. Needs `src`."""

    src: str
    """A folder of tars, a tar, a pattern (`DIR/*.tar`), braces (`DIR/train-{000000..000099}.tar`) or a URL of these
    (s3, gs, http, https, hf)."""
    out: str | None = None
    """Folder for the index and the manifest; none: the folder of the tars."""
    name: str | None = None
    """Name of the data set; none: the name of `out`."""
    source: str = ""
    """Where the images come from, for the manifest."""
    licence: str = ""
    """Licence of the images, for the manifest."""
    attribution: str = ""
    """Whom to name, for the manifest."""
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Suffixes of the image of a sample; what it is, its content says."""
    mask: tuple[str, ...] = ("mask.png", "seg.png")
    """Suffixes of its segmentation mask, an 8-bit grey PNG of class numbers; empty: masks are left out."""
    mask_classes: tuple[str, ...] = ()
    """Names of these numbers, `background` first; empty: the numbers."""
    label: Literal["auto", "cls", "json", "txt", "none"] = "auto"
    """Which member holds the label: `.cls`, `.json` or `.txt`; `auto`: the first of these that a sample has, but no
    texts that look like captions."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ...; empty: the names or numbers that are found."""
    json_label: str = "label"
    """Field of the `.json` with the class, a number or a name."""
    json_labels: str = "labels"
    """Field with several classes: a list of names, a mapping of names to 0, 1 or -1 (not known), or a list of these
    flags, one for each of `classes`."""
    json_patient: str = "patient"
    """Field with the patient; only a number that tells nothing is stored."""
    json_split: str = "split"
    """Field with the split."""
    splits: dict[str, str] = Field(default={})
    """Splits by pattern of the tar's name or path, e.g. `{"train-*": train, "dev-*": val}`; the first that fits counts.
    Empty: by the `.json`, else by `train`, `val` or `test` in the tar's name, else all are one split."""
    ignore: tuple[str, ...] = ()
    """Suffixes of members to pass over in silence, e.g. `[pyd]`: a pickle beside an image is refused otherwise."""
    check: Literal["pixels", "header"] = "pixels"
    """`pixels`: every image is decoded, mean and std are of all, and duplicates are looked for; `header`: only its header
    is read, many times faster, mean and std are of one image in 32, and duplicates are not looked for."""
    quota: BadQuota = BadQuota()
    """How many samples, members and tars may be unusable; they are left out and named in `quarantine.csv`."""
    report: bool = True
    """Write `report.html`, a page about the data."""
    workers: int = Field(default=2, ge=1)
    """Processes, each with a tar of its own."""
    overwrite: bool = False
    """Replace the index that `out` has."""

    @field_validator("image")
    @classmethod
    def _some(cls, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        if not suffixes:
            raise ValueError("name at least one suffix, e.g. [jpg]")
        return suffixes

    def reading(self) -> dict[str, object]:
        """The settings that decide what is found in a tar: one scanned under others must be scanned again."""
        names = (
            "image",
            "mask",
            "label",
            "json_label",
            "json_labels",
            "json_patient",
            "json_split",
            "ignore",
        )
        return self.model_dump(include={*names, "check"})
