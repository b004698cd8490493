"""A labelled set judged by all ranks together: each predicts its share, rank 0 scores all of it.

So a score does not depend on the number of ranks. Shapes: M images, of which this rank has m, K classes.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.shards import PackedImages
from essa_dist.disk import whole, write_whole
from essa_dist.distributed.messages import Channel
from essa_dist.evaluation.metrics.scores import Scores
from essa_dist.tasks import Task
from essa_dist.tasks.segmentation import Segmentation

Model = Callable[[Tensor], Tensor]
"""Normalised images on the device to logits; called as often on every rank."""
Ready = Callable[[LabelledBatch], LabelledBatch]
"""A batch, normalised and on the device."""


class Interrupted(Exception):
    """A signal came while a set was predicted; raised on all ranks at the same batch."""


class Judged(NamedTuple):
    """What is known of a whole set, on rank 0, in its order."""

    indices: Tensor
    """[M] numbers of the samples in their set"""
    rows: dict[str, Tensor]
    """Of classes ``probabilities`` [M, K] and ``targets``; of masks what ``Segmentation.rows`` lists. And ``loss`` [M]."""

    def scores(
        self, task: Task, *, resamples: int, seed: int = 0, patients: NDArray[np.integer[Any]] | None = None
    ) -> Scores:
        """All metrics, with the mean loss as ``loss``."""
        chosen: dict[str, Any] = {"resamples": resamples, "seed": seed, "patients": patients}
        rows = {name: values for name, values in self.rows.items() if name != "loss"}
        if isinstance(task, Segmentation):
            found = task.score_rows(rows, **chosen)
        else:
            found = task.score(rows["probabilities"], rows["targets"], **chosen)
        found.values["loss"] = float(self.rows["loss"].double().mean())
        return found


def judge(
    model: Model, batches: Iterable[LabelledBatch], ready: Ready, task: Task, channel: Channel
) -> Judged | None:
    """Predict this rank's ``batches``, of which every rank has as many of the same size; the whole set on rank 0."""
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        on_device = ready(batch)
        logits = model(on_device.images)
        own = rows_of(logits, on_device.targets, task) | {"indices": batch.indices}
        for name, values in own.items():
            rows.setdefault(name, []).append(values.cpu())
    return gathered({name: torch.cat(parts) for name, parts in rows.items()}, channel)


def rows_of(logits: Tensor, targets: Tensor, task: Task) -> dict[str, Tensor]:
    """What the scores need of each image of a batch."""
    one_by_one = zip(logits.split(1), targets.split(1), strict=True)
    loss = torch.stack([task.loss(own, its) for own, its in one_by_one])
    probabilities = task.probabilities(logits)
    if isinstance(task, Segmentation):
        return task.rows(probabilities, targets) | {"loss": loss}
    return {"probabilities": probabilities, "targets": targets, "loss": loss}


def gathered(rows: dict[str, Tensor], channel: Channel) -> Judged | None:
    """The rows of all ranks on rank 0, in the order of ``indices``, without those of index -1, which are repeats."""
    for name, own in rows.items():
        own = own.contiguous()
        if channel.rank > 0:
            channel.send(own, 0)
            continue
        parts = [own, *(torch.empty_like(own) for _ in range(channel.world - 1))]
        for source, part in enumerate(parts[1:], start=1):
            channel.receive(part, source)
        rows[name] = torch.cat(parts)
    if channel.rank > 0:
        return None
    order = rows["indices"].argsort(stable=True)
    order = order[rows["indices"][order] >= 0]
    indices = rows.pop("indices")[order]
    return Judged(indices, {name: values[order] for name, values in rows.items()})


def told(judged: Judged | None, score: Callable[[Judged], Scores], channel: Channel) -> dict[str, Any]:
    """``score(judged)`` of rank 0 as a dict, on every rank; or its error."""

    def work() -> dict[str, Any]:
        assert judged is not None
        return score(judged).as_dict()

    result: dict[str, Any] = channel.together(work)
    return result


def save_judged(
    folder: Path, judged: Judged, result: Mapping[str, Any], images: PackedImages, classes: Sequence[str]
) -> Path:
    """Write ``test.npz``, the rows with the key of each image, then ``test.json``, each whole; the path of the first."""
    folder.mkdir(exist_ok=True)
    rows: dict[str, Any] = {name: values.numpy() for name, values in judged.rows.items()}
    keys = np.array([images.keys[i] for i in judged.indices.tolist()])
    predictions = folder / "test.npz"
    with whole(predictions) as beside, beside.open("wb") as file:
        np.savez_compressed(file, keys=keys, classes=np.array(classes), **rows)
    told = {**result, "classes": list(classes), "images": images.manifest.name, "split": images.split}
    write_whole(folder / "test.json", f"{json.dumps(told, indent=1)}\n")
    return predictions
