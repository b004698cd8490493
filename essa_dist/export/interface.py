"""What every export format offers, and what it is given to write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from essa_dist.backbones import Backbone, Features

WEIGHTS, MODEL_CONFIG = "model.safetensors", "config.json"

Reader = Callable[[Tensor], Features]
"""Normalised images [B, channels, H, W] to class and patch tokens, as another program computes them."""


class Subject(NamedTuple):
    """The model that is exported."""

    backbone: Backbone
    """In eval mode, fp32, on the CPU; its adapter merged where that is possible."""
    ref: str
    """What ``load_model`` made it of."""
    own: dict[str, Any]
    """The settings of ``BackboneConfig`` that build the same architecture, without weights."""
    image_size: int
    """Side in px that the export is made for and compared at."""

    @property
    def in_chans(self) -> int:
        """Channels of the images that the trunk takes."""
        return int(self.backbone.vit.patch_embed.proj.in_channels)


class Format(Protocol):
    """One module for each format."""

    LIBRARY: str
    """Distribution that reads the folder."""
    READER: str
    """Who reads it, in words: ``plain timm``."""
    FILES: tuple[str, ...]
    """What ``write`` may leave in the folder; the weights first."""
    TOLERANCE: float
    """Allowed difference of features in fp32, relative to the largest of them where that is above 1."""
    PLAIN: bool
    """Holds nothing but the weights of a plain ViT: an adapter must be merged."""
    WHOLE: bool
    """Holds the whole model, not only what an adapter trained."""
    RESIZING: str
    """How its reader takes images of another size, in words; empty: it takes none."""

    def write(self, folder: Path, subject: Subject) -> None:
        """Write the model into ``folder``, which is there. Raises EssaError for a model that the format can't hold."""
        ...

    def load(self, folder: Path) -> list[Reader]:
        """What ``write`` wrote, loaded in each way that the card tells, from the folder alone."""
        ...

    def usage(self, subject: Subject) -> str:
        """Markdown: how to load the folder and get features of ``images``."""
        ...
