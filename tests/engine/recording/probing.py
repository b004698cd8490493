"""Probes of a few images, and features that can be followed by eye."""

from typing import Any

import torch

from essa_dist.data.shards import open_packed
from essa_dist.engine.recording.probe import Probe, ProbeConfig

SIZE = 48


def probe(ref: str, **settings: Any) -> Probe:
    config = ProbeConfig(**{"k": 3, **settings})
    return Probe(open_packed(ref), config, image_size=SIZE)


def colours(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().mean(dim=(2, 3)) - 127
