"""A labelled batch moves, normalises and splits without losing anything."""

from typing import Any

import pytest
import torch

from essa_dist.data.batch import normalise
from essa_dist.data.labelled.batch import LabelledBatch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)


def batch(targets: torch.Tensor) -> LabelledBatch:
    images = torch.arange(6 * 3 * 4 * 5).view(6, 3, 4, 5).to(torch.uint8)
    origin: dict[str, Any] = {"keys": tuple("abcdef"), "step": 7, "bad": ("s:k",), "why": ("broken",)}
    return LabelledBatch(images, targets, torch.arange(6), **origin)


@pytest.mark.parametrize(
    "targets", [torch.arange(6), torch.rand(6, 3), torch.ones(6, 4, 5, dtype=torch.uint8)]
)
def test_pixels_are_normalised_and_targets_kept(targets: torch.Tensor) -> None:
    given = batch(targets)
    moved = given.to("cpu", mean=MEAN, std=STD, dtype=torch.bfloat16)
    assert torch.equal(moved.images, normalise(given.images, MEAN, STD, torch.bfloat16))
    assert torch.equal(moved.targets, targets)
    assert moved.targets.dtype == targets.dtype
    assert (moved.keys, moved.step, moved.bad, moved.why) == (given.keys, 7, ("s:k",), ("broken",))


def test_parts_join_to_the_whole() -> None:
    given = batch(torch.rand(6, 3))
    parts = list(given.split(3))
    for name in ("images", "targets", "indices"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(given, name))
    assert sum((part.keys for part in parts), ()) == given.keys
    assert {part.step for part in parts} == {7}


@pytest.mark.parametrize("n", [4, 7])
def test_uneven_parts_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"6 images can't be cut into {n} equal"):
        list(batch(torch.arange(6)).split(n))
