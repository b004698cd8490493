"""Mixtures of images and labels: timm's formulas, exact on resume, and honest about what isn't known."""

import random

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from essa_dist.data.labelled import mixing as module
from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.mixing import Mixer, MixingConfig, blend, box, soft_targets
from essa_dist.errors import UsageError

K = 5


def batch(targets: Tensor, step: int = 3) -> LabelledBatch:
    n = len(targets)
    images = torch.randn(n, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    return LabelledBatch(images, targets, torch.arange(n), keys=tuple("k" * n), step=step)


def classes(n: int = 6) -> Tensor:
    return torch.arange(n) % K


def mixer(seed: int = 1, rank: int = 0, task: str = "multiclass", **settings: float) -> Mixer:
    return Mixer(MixingConfig.model_validate(settings), task=task, n_classes=K, seed=seed, rank=rank)


class Given(random.Random):
    """Draws what it is told."""

    def __init__(self, share: float, switch: float = 0.0) -> None:
        super().__init__(0)
        self.share, self.numbers = share, iter([0.0, switch])

    def random(self) -> float:
        return next(self.numbers)

    def betavariate(self, alpha: float, beta: float) -> float:
        return self.share


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(module.random, "Random", lambda _: Given(0.3))
    return 0.3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_that_of_timm(smoothing: float, shares: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch(classes())
    mixed = mixer(mixup=0.8, label_smoothing=smoothing)(given)
    monkeypatch.setattr(np.random, "beta", lambda *_: shares)
    images, targets = Mixup(0.8, 0.0, label_smoothing=smoothing, num_classes=K)(
        given.images.clone(), given.targets
    )
    assert torch.allclose(mixed.images, images, atol=1e-6)
    assert torch.allclose(mixed.targets, targets, atol=1e-6)


def test_several_labels_are_mixed_and_smoothed_as_by_timm() -> None:
    targets = (torch.arange(30).view(6, K) % 3 == 0).float()
    ours = blend(soft_targets(targets, K, 0.2), 0.3)
    assert torch.allclose(ours, mixup_target(targets, K, 0.3, 0.2, multi_label=True))


def test_cutmix_pastes_one_rectangle_and_weighs_labels_by_what_is_left() -> None:
    given = batch(classes())
    for seed in range(20):
        mixed = mixer(seed=seed, cutmix=1.0)(given)
        pasted = (mixed.images != given.images).any(dim=1)
        assert torch.equal(mixed.images[:, :, pasted[0]], given.images.flip(0)[:, :, pasted[0]])
        assert torch.equal(pasted, pasted[:1].expand_as(pasted))
        own = 1 - float(pasted[0].float().mean())
        assert torch.allclose(mixed.targets, mixup_target(given.targets, K, own), atol=1e-6)


def test_a_box_has_the_area_it_should_away_from_the_borders() -> None:
    areas = {
        (bottom - top) * (right - left)
        for top, bottom, left, right in (box(100, 200, 0.75, random.Random(seed)) for seed in range(300))
    }
    assert max(areas) == 50 * 100
    assert min(areas) < 3000


def test_a_step_is_mixed_alike_whenever_it_comes_and_other_steps_and_ranks_otherwise() -> None:
    given = batch(classes())
    settings = {"mixup": 0.8, "cutmix": 1.0}
    mixed, again = (mixer(**settings)(given) for _ in range(2))
    assert torch.equal(mixed.images, again.images)
    assert torch.equal(mixed.targets, again.targets)
    others = (
        mixer(**settings)(batch(classes(), step=4)),
        mixer(rank=1, **settings)(given),
        mixer(2, **settings)(given),
    )
    assert all(not torch.equal(mixed.targets, other.targets) for other in others)


def test_the_batch_that_was_given_stays_as_it_is() -> None:
    given = batch(classes())
    before = given.images.clone()
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixer(**settings)(given)
    assert torch.equal(given.images, before)
    assert given.targets.dtype == torch.int64


def test_nothing_asked_is_nothing_done() -> None:
    given = batch(classes())
    assert mixer()(given) is given


def test_smoothing_alone_leaves_the_images() -> None:
    given = batch(classes())
    smooth = mixer(label_smoothing=0.1)(given)
    assert smooth.images is given.images
    assert torch.allclose(smooth.targets.sum(dim=1), torch.ones(6))
    assert torch.allclose(smooth.targets.max(dim=1).values, torch.full((6,), 0.92))


def test_what_is_not_known_of_one_image_is_not_known_of_the_mixture() -> None:
    targets = torch.tensor([[1.0, 0, -1, 1, 0], [0, -1, 1, 1, 0]])
    mixed = mixer(task="multilabel", mixup=1.0, label_smoothing=0.1)(batch(targets)).targets
    assert ((mixed == -1) == torch.tensor([0, 1, 1, 0, 0]).bool()).all()
    assert mixed[mixed != -1].min() >= 0


def test_an_odd_batch_is_mixed_too() -> None:
    given = batch(classes(5))
    mixed = mixer(mixup=1.0)(given)
    assert torch.allclose(mixed.images[2], given.images[2], atol=1e-6)
    assert torch.allclose(mixed.targets.sum(dim=1), torch.ones(5))


def test_batches_are_left_alone_and_switched_as_often_as_asked() -> None:
    def kind(step: int) -> str:
        given = batch(classes(), step)
        mixed = mixer(mixup=1.0, cutmix=1.0, probability=0.5, switch=0.25)(given)
        if torch.equal(mixed.images, given.images):
            return "none"
        new = (mixed.images != given.images) & (mixed.images != given.images.flip(0))
        return "mixup" if new.any() else "cutmix"

    kinds = [kind(step) for step in range(300)]
    assert 120 < kinds.count("none") < 190  # 150, and a few boxes of no pixel
    assert 85 < kinds.count("mixup") < 140  # 112
    assert 15 < kinds.count("cutmix") < 60  # 37


@pytest.mark.parametrize("task", ["ordinal", "segmentation"])
def test_tasks_without_soft_labels_are_refused_only_where_mixing_is_asked_for(task: str) -> None:
    with pytest.raises(UsageError, match=f"don't go with task {task}"):
        mixer(task=task, mixup=0.8)
    with pytest.raises(UsageError, match="set them to 0"):
        mixer(task=task, label_smoothing=0.1)
    mixer(task=task)
