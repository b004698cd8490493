"""What a packed set says of its samples, in the classes of a model."""

import logging

from torch import Tensor

from essa_dist.data.labelled.labels import LabelKind, Labels, labels_of
from essa_dist.errors import UsageError
from essa_dist.inference.interface import Images
from essa_dist.tasks import Task

log = logging.getLogger(__name__)

KINDS: dict[str, LabelKind] = {"multilabel": "multi", "segmentation": "mask"}
"""Kind of a task -> kind of its labels, where that is not one class."""


class Truth:
    """Of files, and of splits whose labels are not for the task, nothing is known; why is said once."""

    def __init__(self, images: Images, task: Task, *, told: bool = True) -> None:
        self._images = images
        self._labels: list[Labels | None] = []
        for split in images.packed:
            try:
                self._labels.append(labels_of(split, KINDS.get(task.kind, "single"), task.classes))
            except UsageError as error:
                if told:
                    log.info("no metrics: %s", error)
                self._labels.append(None)

    def target(self, item: int) -> Tensor | None:
        """As ``Labels.target`` gives it; None where nothing is known."""
        if not any(self._labels):
            return None
        split, i = self._images.find(item)
        labels = self._labels[split]
        if labels is None or not labels.known[i]:
            return None
        return labels.target(self._images.packed[split], i)
