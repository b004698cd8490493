"""One file to pack, as a layout found it."""

from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """A file and what is known of it before it is opened. A file may hold several samples: frames, slices, tiles."""

    path: Path
    key: str
    """Unique in the set; samples of one file append to it."""
    label: str | None = None
    """Class name, where a sample has one class."""
    labels: tuple[int, ...] | None = None
    """0, 1 or -1 (not known) for each class of the layout, where a sample may have several."""
    patient: str | None = None
    """Identifier of the patient (or lesion); never stored, only numbered."""
    split: str | None = None
    mask: Path | None = None
    """Segmentation mask of the image."""
