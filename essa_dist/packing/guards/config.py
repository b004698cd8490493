"""What the guards do with what they find."""

from typing import Literal

from pydantic import Field

from essa_dist.settings import Config


class GuardConfig(Config):
    """Leaks between splits, and what is done about them. Inside one split duplicates are reported, never refused."""

    patients: Literal["refuse", "report"] = "refuse"
    """A patient in two splits: `refuse` to pack, before any image is read, or `report` it."""
    exact: Literal["report", "refuse", "drop"] = "report"
    """The same pixels in two splits, whatever the file format: `report`, `refuse`, or `drop` all but those of the first
    split in the order of `keep`."""
    near: Literal["report", "refuse", "drop", "ignore"] = "report"
    """Nearly the same picture in two splits (rescaled, compressed again, other brightness, a few pixels cropped): as
    `exact`; `ignore` does not look for them."""
    keep: tuple[str, ...] = ("test", "val")
    """Whose samples stay where duplicates are dropped, the first one first; other splits follow in the order of the
    set. A published test set so stays whole, and the training set makes way."""
    similarity: float = Field(default=0.92, gt=0, le=1)
    """Nearly the same are two pictures whose fine detail correlates by at least this much, once one is shifted and
    scaled onto the other by up to a few per cent."""
    pairs: int = Field(default=200, ge=0)
    """Pairs of each kind that are named in `findings.json`; all are counted."""
