"""Linear probe by SGD: heads of many learning rates and weight decays trained together on extracted features.

As DINOv2's evaluation (arXiv:2304.07193, B.3) trains a grid of heads at once and keeps the one that is best on held-out
images; here those are of the bank, never of the test set. The heads are one matrix, so that a step is two products.
Shapes: N bank members, B of them in a step, C feature channels, K classes, H heads.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from essa_dist.evaluation.holdout import hold_out
from essa_dist.evaluation.samples import Samples

LEARNING_RATES = (*(m * 10.0**e for e in range(-5, -1) for m in (1, 2, 5)), 0.1)  # DINOv2's 13
WEIGHT_DECAYS = (0.0, 1e-4, 1e-2)
MOMENTUM = 0.9
BATCH = 256
VALIDATION = 0.2  # share of the bank, in patients where they are known


class Head(NamedTuple):
    """The chosen head, fitted anew to the whole bank."""

    probabilities: Tensor  # [M, K] of the test samples
    learning_rate: float
    weight_decay: float


class _Heads(NamedTuple):
    weight: Tensor  # [H, K, C]
    bias: Tensor  # [H, K]


class _Scale(NamedTuple):
    """Every channel gets mean 0 and deviation 1 over the images that a head learns from."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features_NC: Tensor) -> "_Scale":
        deviation = features_NC.std(dim=0, correction=0)
        return cls(features_NC.mean(dim=0), torch.where(deviation > 0, deviation, 1))

    def __call__(self, features_NC: Tensor) -> Tensor:
        return (features_NC - self.mean) / self.deviation


def linear_sgd(
    bank: Samples,
    test_MC: Tensor,
    *,
    num_classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 1000,
    seed: int = 0,
) -> Head:
    """Class probabilities of the test samples; one sigmoid a class where a sample may have several.

    Every learning rate meets every weight decay. Chosen by mean recall of the classes, or mean AUROC, on a part of the
    bank that holds no patient of the other; of equally good heads the first. Raises ``UsageError`` for a bank in which
    nothing can be chosen: fewer than two images or patients.
    """
    grid = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    learn, check = hold_out(bank, VALIDATION, seed=seed)
    scale = _Scale.of(bank.features[learn])
    fitted = bank._replace(features=scale(bank.features))
    heads = fit_heads(fitted.take(learn), grid, num_classes=num_classes, steps=steps, seed=seed)
    logits_HMK = apply_heads(heads, fitted.features[check])
    best = int(torch.stack([_worth(logits_MK, bank.targets[check]) for logits_MK in logits_HMK]).argmax())
    scale = _Scale.of(bank.features)
    whole = bank._replace(features=scale(bank.features))
    head = fit_heads(whole, grid[best : best + 1], num_classes=num_classes, steps=steps, seed=seed)
    return Head(_activate(apply_heads(head, scale(test_MC))[0], bank), *grid[best])


def fit_heads(
    bank: Samples, grid: Sequence[tuple[float, float]], *, num_classes: int, steps: int, seed: int = 0
) -> _Heads:
    """Heads of each (learning rate, weight decay), from zero, all by the same batches; the rate falls by a cosine.

    Without autograd: the gradient of either cross-entropy with respect to the logits is probability minus target.
    """
    features_NC = bank.features
    known_N, wanted_NK = _wanted(bank.targets, num_classes, features_NC.dtype)
    rates, decays = torch.tensor(grid, dtype=features_NC.dtype, device=features_NC.device).T
    h, (n, c) = len(grid), features_NC.shape
    weight = features_NC.new_zeros(h * num_classes, c)
    bias = features_NC.new_zeros(h * num_classes)
    rates, decays = rates.repeat_interleave(num_classes), decays.repeat_interleave(num_classes)
    moment_w, moment_b = torch.zeros_like(weight), torch.zeros_like(bias)
    random = torch.Generator().manual_seed(seed)
    batch = min(BATCH, n)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch:  # an incomplete rest of an epoch is left out, as drop_last does
            order = torch.randperm(n, generator=random)
        rows, order = order[:batch].to(features_NC.device), order[batch:]
        x_BC = features_NC[rows]
        logits = torch.addmm(bias, x_BC, weight.T).view(batch, h, num_classes)
        error = _activate(logits, bank) - wanted_NK[rows][:, None]
        if known_N is not None:
            error = error * known_N[rows][:, None]
        error = error.view(batch, -1) / batch
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        moment_w.mul_(MOMENTUM).addmm_(error.T, x_BC).addcmul_(decays[:, None], weight)
        moment_b.mul_(MOMENTUM).add_(error.sum(dim=0))
        weight.addcmul_(rates[:, None], moment_w, value=-falling)
        bias.addcmul_(rates, moment_b, value=-falling)
    return _Heads(weight.view(h, num_classes, c), bias.view(h, num_classes))


def apply_heads(heads: _Heads, features_MC: Tensor) -> Tensor:
    """Logits [H, M, K]."""
    return torch.einsum("mc,hkc->hmk", features_MC, heads.weight) + heads.bias[:, None]


def _wanted(targets: Tensor, num_classes: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Which targets [N, K] are known (None: all of them), and the probabilities [N, K] that are wanted."""
    if targets.ndim == 1:
        return None, torch.nn.functional.one_hot(targets, num_classes).to(dtype)
    return (targets >= 0).to(dtype), targets.clamp(min=0).to(dtype)


def _activate(logits: Tensor, bank: Samples) -> Tensor:
    return logits.sigmoid() if bank.is_multilabel else logits.softmax(dim=-1)


def _worth(logits_MK: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes that the images hold: of the recall, or of the AUROC."""
    if not logits_MK.isfinite().all():
        return logits_MK.new_tensor(-1.0)  # a rate so high that the head diverged
    if targets.ndim == 1:
        right = (logits_MK.argmax(dim=1) == targets).to(logits_MK)
        return torch.stack([right[targets == label].mean() for label in targets.unique()]).mean()
    columns = zip(logits_MK.T, targets.T, strict=True)
    areas = [auroc(score[truth >= 0], truth[truth >= 0] > 0) for score, truth in columns]
    areas = [area for area in areas if not area.isnan()]
    return torch.stack(areas).mean() if areas else logits_MK.new_zeros(())


def auroc(score_M: Tensor, positive_M: Tensor) -> Tensor:
    """Area under the ROC curve by ranks (Mann-Whitney's U, ties count half); NaN without both kinds of samples."""
    values, place = score_M.unique(return_inverse=True)
    negatives = torch.bincount(place[~positive_M], minlength=len(values)).double()
    below = negatives.cumsum(0) - negatives / 2
    return below[place[positive_M]].sum() / (positive_M.sum() * (~positive_M).sum())
