"""How much each class counts in a loss. Weights have a mean of 1 over the training images, so that they change what the
loss asks for and not its scale, and a micro-batch needs to know nothing of the others.

Shapes: K classes or labels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.tasks.interface import ClassCounts

Weights: TypeAlias = Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...]


def class_weights(weights: Weights, counts: ClassCounts | None, classes: Sequence[str]) -> Tensor | None:
    """Weight of each class, [K]; None: all alike. ``balanced``: the inverse of its share of the training images.

    A class without training images gets 1. Raises UsageError for another number of weights than classes, and where
    there are no counts.
    """
    if weights == "none":
        return None
    members_K = torch.tensor(_needed(counts, "class_weights").positive, dtype=torch.float64)
    if weights == "balanced":
        raw_K = torch.where(members_K > 0, 1 / members_K.clamp_min(1), 0)
    else:
        raw_K = torch.tensor(_fitting(weights, classes, "class_weights"), dtype=torch.float64)
    scale = members_K.sum() / (members_K * raw_K).sum()
    return torch.where(raw_K > 0, raw_K * scale, 1.0).float()


def positive_weights(
    weights: Weights | float, counts: ClassCounts | None, labels: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """Weight of a yes and of a no for each label, [K] each; None: all alike.

    A number w: a yes counts w times as much as a no; ``balanced``: all yes of a label as much as all no. A label that
    the training images never or always show gets 1. Raises UsageError as ``class_weights``.
    """
    if weights == "none":
        return None
    counts = _needed(counts, "pos_weight")
    yes_K = torch.tensor(counts.positive, dtype=torch.float64)
    no_K = torch.tensor(counts.known, dtype=torch.float64) - yes_K
    if weights == "balanced":
        ratio_K = torch.where((yes_K > 0) & (no_K > 0), no_K / yes_K.clamp_min(1), 1.0)
    else:
        given = [weights] * len(labels) if isinstance(weights, (int, float)) else list(weights)
        ratio_K = torch.tensor(_fitting(given, labels, "pos_weight"), dtype=torch.float64)
    weighted_K, whole_K = ratio_K * yes_K + no_K, yes_K + no_K
    negative_K = torch.where(whole_K > 0, whole_K / weighted_K.clamp_min(1e-9), 1.0)
    return (ratio_K * negative_K).float(), negative_K.float()


def _needed(counts: ClassCounts | None, key: str) -> ClassCounts:
    if counts is None or not any(counts.known):
        raise UsageError(f"task.{key} needs labelled training images to count: give some, or set it to none")
    return counts


def _fitting(weights: Sequence[float], classes: Sequence[str], key: str) -> Sequence[float]:
    if len(weights) != len(classes):
        raise UsageError(
            f"task.{key} has {len(weights)} numbers for {len(classes)} classes ({', '.join(classes)}): give one for each"
        )
    return weights
