"""Predictions of classes: a line for each picture.

Shapes: B images, S the side that the model sees, M pictures, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from essa_dist.data.labelled.transforms import prepare
from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.inference.predictor import Forward, Patients, Row, column
from essa_dist.inference.truth import Truth
from essa_dist.inference.work import One
from essa_dist.tasks.ordinal import Ordinal

THRESHOLD = 0.5


class Classifying:
    """See :class:`~essa_dist.inference.predictor.Predictor`."""

    def __init__(self, forward: Forward, truth: Truth, *, threshold: float) -> None:
        self._forward, self._truth, self._threshold = forward, truth, threshold
        self._task, self._data = forward.model.task, forward.model.config.data
        self._several = self._task.kind == "multilabel"
        if threshold != THRESHOLD and not self._several:
            raise UsageError(
                f"threshold={threshold:g} is for multi-label runs; this one is {self._task.kind}"
            )

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 [3, S, S], as the run's own test images are prepared."""
        how, share = self._data.evaluation, self._data.evaluation_share
        return prepare(pixels, None, self._forward.model.image_size, how, share)[0].contiguous()

    def predict(self, batch: Sequence[One[Tensor]]) -> tuple[list[Row], list[Path]]:
        keys = [one.key for one in batch]
        probabilities_BK = self._forward(
            torch.stack([one.value for one in batch]), self._forward.model.logits, keys=keys
        )
        rows = []
        for one, values in zip(batch, probabilities_BK.tolist(), strict=True):
            target = self._truth.target(one.item)
            known = None if target is None else target.tolist()
            rows.append({"key": one.key, "item": one.item, "probabilities": values, "truth": known})
        return rows, []

    def table(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        probabilities_MK = column(rows, "probabilities")
        names = self._task.classes
        chosen = self._flags(probabilities_MK).tolist()
        some_truth = any(row["truth"] is not None for row in rows)
        expected = self._expected_grades(probabilities_MK)
        lines = []
        for m, row in enumerate(rows):
            line: dict[str, Any] = {"key": row["key"], "predicted": self._words(chosen[m])}
            if some_truth:
                line["truth"] = "" if row["truth"] is None else self._words(row["truth"])
            if expected is not None:
                line["expected_grade"] = f"{expected[m]:.6g}"
            for k, name in enumerate(names):
                line[f"p_{name}"] = f"{row['probabilities'][k]:.6g}"
            if self._several:
                line |= {f"is_{name}": chosen[m][k] for k, name in enumerate(names)}
            lines.append(line)
        return lines

    def score(self, rows: Sequence[Row], *, resamples: int, seed: int, patients: Patients) -> Scores:
        targets = column(rows, "truth")
        return self._task.score(
            column(rows, "probabilities"),
            targets if self._several else targets.long(),
            resamples=resamples,
            seed=seed,
            patients=patients,
        )

    def _flags(self, probabilities_MK: Tensor) -> Tensor:
        """Class numbers [M], or 0 and 1 [M, K]."""
        if self._several:
            return (probabilities_MK >= self._threshold).long()
        return self._task.predictions(probabilities_MK)

    def _words(self, chosen: Any) -> str:
        names = self._task.classes
        if not self._several:
            return names[int(chosen)]
        return "|".join(name for name, flag in zip(names, chosen, strict=True) if flag == 1)

    def _expected_grades(self, probabilities_MK: Tensor) -> list[float] | None:
        """Mean of the grades, the lowest 0, by their probabilities."""
        if not isinstance(self._task, Ordinal):
            return None
        found: list[float] = (probabilities_MK @ torch.tensor(self._task.grades).float()).tolist()
        return found
