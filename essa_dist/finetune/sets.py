"""The labelled images of a run, in the classes of its task: trained on, chosen by, judged at the end."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from essa_dist.data.labelled.labels import LabelKind, Labels, labels_of, mask_pixels
from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.settings import Config
from essa_dist.tasks import ClassCounts, Task, build_task, resolve_task

LABELS: dict[str, LabelKind] = {"segmentation": "mask", "multilabel": "multi"}
"""What each task learns from; all others from one class for each image."""
Role = Literal["val", "test"]


class LabelledSet(NamedTuple):
    """A split, its labels in the classes of the task, and the samples of it that are used."""

    images: PackedImages
    labels: Labels
    chosen: NDArray[np.int64]

    def counts(self) -> ClassCounts:
        """How often the chosen samples show each class; of masks, how many pixels."""
        if self.labels.kind == "mask":
            pixels = mask_pixels(self.images, self.labels, self.chosen).sum(axis=0)
            return ClassCounts(tuple(pixels.tolist()), (int(pixels.sum()),) * len(pixels))
        positive, known = self.labels.counts(self.chosen), self.labels.known_counts(self.chosen)
        return ClassCounts(tuple(positive.tolist()), tuple(known.tolist()))


class Sets(NamedTuple):
    """All that a run is told of its task."""

    settings: Config
    """Of the task, its kind resolved."""
    task: Task
    train: LabelledSet
    judged: dict[Role, LabelledSet]
    """Those that the run has and wants."""


def open_sets(config: FinetuneConfig) -> Sets:
    """Open and check them, before seconds of loading weights. Raises UsageError or DataError with the way out."""
    if not config.data.train:
        raise UsageError(
            "data.train is not set: name packed, labelled images, as data.train=PACKED (essa pack makes them)"
        )
    images = config.data.open().keep_decoded(config.data.decoded, config.data.decoded_gb)
    settings = resolve_task(config.task, images.manifest)
    kind = LABELS.get(settings.model_dump()["kind"], "single")
    if config.data.evaluation == "native" and kind != "mask":
        raise UsageError(
            f"data.evaluation=native is for segmentation, by windows; task {settings.model_dump()['kind']} judges whole "
            "images: use whole or centre_crop"
        )
    labels = labels_of(images, kind)
    train = LabelledSet(images, labels, config.data.choose(images, labels))
    # Of masks they cost a reading of every one, which only weights by share are worth.
    unweighted = kind == "mask" and settings.model_dump()["class_weights"] == "none"
    task = build_task(settings, images.manifest, None if unweighted else train.counts())
    judged: dict[Role, LabelledSet] = {}
    if config.validation.every is not None:
        judged["val"] = _validation_set(config, train, task)
    if config.test.enabled and (config.data.test or "test" in images.manifest.splits):
        judged["test"] = _held_out(config, "test", kind, task)
    return Sets(settings, task, train, judged)


def _validation_set(config: FinetuneConfig, train: LabelledSet, task: Task) -> LabelledSet:
    if not (config.data.val or "val" in train.images.manifest.splits):
        raise UsageError(
            f"data.train={config.data.train} has no split val to choose the best checkpoint on: name one, as "
            "data.val=PACKED:SPLIT, or keep the last checkpoint, validation.every=null"
        )
    found = _held_out(config, "val", train.labels.kind, task)
    if found.labels.kind != "mask":  # metrics of masks are there for any
        # What can't be had of a model that knows nothing can't be had of any.
        unknowing = torch.full((len(found.chosen), len(task.classes)), 1 / len(task.classes))
        try:
            task.score(unknowing, torch.as_tensor(found.labels.values[found.chosen])).value(
                task.target_metric
            )
        except UsageError as error:
            raise UsageError(f"validation: {error}") from error
    return found


def _held_out(config: FinetuneConfig, role: Role, kind: LabelKind, task: Task) -> LabelledSet:
    images = config.data.open(role).keep_decoded(config.data.decoded, config.data.decoded_gb)
    labels = labels_of(images, kind, task.classes)
    return LabelledSet(images, labels, labels.known.nonzero()[0])
