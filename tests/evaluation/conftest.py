"""Images in memory that stand for packed ones, and a small untrained backbone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.backbones import Backbone, BackboneConfig, build_backbone


@dataclass
class Pictures:
    """What evaluation uses of ``PackedImages``."""

    pixels: list[Tensor]  # uint8 [3, H, W]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: str = "train"
    manifest: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(shards=(), index_sha256=""))
    label_matrix: NDArray[np.int8] | None = None
    patients: NDArray[np.int32] | None = None

    @property
    def folder(self) -> int:
        return id(self)

    @property
    def keys(self) -> Sequence[str]:
        return [f"key{i}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.pixels)

    def decode(self, i: int) -> Tensor:
        return self.pixels[i]


Draw = Callable[..., Pictures]


@pytest.fixture
def draw() -> Draw:
    """Noisy images of one colour per class name, which any network tells apart."""
    colours = {"red": (230, 30, 30), "green": (30, 230, 30), "blue": (30, 30, 230), "grey": (128, 128, 128)}

    def make(
        classes: Sequence[str], members: Sequence[int], *, seed: int = 0, split: str = "train"
    ) -> Pictures:
        random = torch.Generator().manual_seed(seed)
        labels = np.repeat(np.arange(len(classes)), members)
        plain = torch.tensor([colours[classes[label]] for label in labels])[:, :, None, None]
        noisy = plain + torch.randint(-25, 25, (len(labels), 3, 20, 24), generator=random)
        return Pictures(list(noisy.clamp(0, 255).to(torch.uint8)), labels, tuple(classes), split)

    return make


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name="vit_tiny_patch16_224", weights="random")).eval()
