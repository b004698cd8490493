"""Grades: classes in an order, by continuation ratios (CORN).

Output k answers: given that the grade is k at least, is it higher? Source: Shi et al. 2021, arXiv:2111.08851. The loss is
the cross-entropy of the grades' probabilities, which is CORN's sum over the questions that a grade answers, for each
image (there it is divided by the number of all questions of the batch).
Shapes: B images, K grades, L = K - 1 outputs.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.losses.labelled import continuation_ratios
from essa_dist.tasks.interface import ClassCounts
from essa_dist.tasks.multiclass import ClassesConfig, Metric, Multiclass


class OrdinalConfig(ClassesConfig):
    kind: Literal["ordinal"] = "ordinal"
    """Grades, which have an order: see order."""
    target_metric: Metric = "quadratic_kappa"
    """Chooses the best checkpoint; mae is the mean distance of the predicted grade."""


class Ordinal(Multiclass):
    """See :class:`~essa_dist.tasks.interface.Task`. Columns of probabilities are classes in the manifest's order."""

    kind: ClassVar[str] = "ordinal"
    grades: tuple[int, ...]

    def __init__(
        self, config: OrdinalConfig, classes: Sequence[str], counts: ClassCounts | None = None
    ) -> None:
        """Raises UsageError as ``Multiclass``, and for classes without an order."""
        self._set_up(config, classes, counts)
        self.n_outputs = len(classes) - 1
        if self.grades is None:
            raise UsageError(
                "task.kind=ordinal needs the order of the classes, which are no numbers: name them from the lowest to"
                f" the highest, as task.order=[{', '.join(self.classes)}]"
            )
        self._grade_K = torch.tensor(self.grades)

    def log_probabilities(self, logits_BL: Tensor) -> Tensor:
        """fp32 [B, K]."""
        return continuation_ratios(logits_BL.float())[:, self._grade_K.to(logits_BL.device)]

    def predictions(self, probabilities: Tensor) -> Tensor:
        """int64 [B]: the class of the median grade, which is CORN's number of thresholds passed with P > 0.5."""
        by_grade = self._grade_K.argsort().to(probabilities.device)
        passed_BL = 1 - probabilities[:, by_grade].cumsum(dim=1)[:, :-1] > 0.5
        return by_grade[passed_BL.sum(dim=1)]
