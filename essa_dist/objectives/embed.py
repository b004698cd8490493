"""Features of either branch, through the module that the wrapper knows."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from essa_dist.backbones.vit import Features
from essa_dist.objectives.interface import Objective


@dataclass(frozen=True)
class Embed:
    """Work for the objective's ``forward``: ``model(Embed(images))`` gives features under every strategy.

    Without gradients, masks, dropout and stochastic depth. Every process must make the same calls, with images of its
    own: sharded tensors are gathered by all of them together.
    """

    images: Tensor
    """[B, 3, H, W], normalised, in the precision that the trunk computes in"""
    branch: Literal["teacher", "student"] = "teacher"

    def __call__(self, objective: Objective) -> Features:
        if self.branch == "teacher":
            with objective.branches.teacher():
                return self._features(objective)
        training = objective.training
        objective.eval()
        try:
            with torch.no_grad():
                return self._features(objective)
        finally:
            objective.train(training)

    def _features(self, objective: Objective) -> Features:
        features: Features = objective.backbone(self.images)
        return features
