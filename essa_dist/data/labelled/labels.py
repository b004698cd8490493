"""What is known of each sample, in the classes of one training set, whatever set the sample is in.

Shapes: n samples, K classes, H x W pixels.
"""

import copy
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.data.index import NONE
from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)

LabelKind = Literal["single", "multi", "mask"]
IGNORE = 255
"""In masks: not to be judged."""


@dataclass(frozen=True)
class Labels:
    """Targets of the samples of one split. Picklable, and the same for every rank."""

    kind: LabelKind
    classes: tuple[str, ...]
    """The K classes that the numbers and columns below mean."""
    known: NDArray[np.bool_]
    """[n]: whether anything is known of the sample."""
    values: NDArray[np.int64] | NDArray[np.float32]
    """single: [n] class numbers, -1 where not known; multi: [n, K] of 0, 1 and -1; mask: [256], the class number of each
    value of a stored mask, or IGNORE."""

    def target(self, images: PackedImages, i: int) -> Tensor:
        """Of sample ``i``: int64 [], float32 [K], or uint8 [H, W] with 255 = ignore.

        Raises UndecodableImage where its mask is broken, UsageError where it has none.
        """
        if self.kind != "mask":
            return torch.as_tensor(self.values[i])
        mask = images.mask(i)
        if mask is None:
            raise UsageError(f"{images.where(i)} has no mask: choose samples that have one")
        return torch.from_numpy(self.values.astype(np.uint8)[mask.numpy()])

    def counts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[K]: how many of ``samples`` have each class. Raises UsageError for masks: see :func:`mask_pixels`."""
        if self.kind == "mask":
            raise UsageError("masks are counted by pixels: use mask_pixels")
        chosen = self.values[samples]
        if self.kind == "multi":
            return np.asarray(np.count_nonzero(chosen == 1, axis=0), np.int64)
        return np.bincount(chosen[chosen >= 0].astype(np.int64), minlength=len(self.classes))

    def known_counts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[K]: of how many of ``samples`` it is known whether they have each class."""
        if self.kind == "multi":
            return np.asarray(np.count_nonzero(self.values[samples] >= 0, axis=0), np.int64)
        return np.full(len(self.classes), int(self.known[samples].sum()))


def labels_of(
    images: PackedImages, kind: LabelKind | None = None, classes: Sequence[str] | None = None
) -> Labels:
    """The labels of a split. ``kind``: None, the one its manifest names; ``classes``: those of the training set, in
    whose numbers they are wanted (None: the set's own).

    Raises UsageError where the set has no labels of this kind, or single labels of classes that ``classes`` don't
    have. Columns that the set lacks are unknown (-1); masks' values of other classes are IGNORE, and said.
    """
    kind = kind or _own_kind(images)
    own = images.manifest.mask_classes if kind == "mask" else images.classes
    _refuse_other(images, kind, own)
    wanted = tuple(own if classes is None else classes)
    if not set(wanted) & set(own):
        raise UsageError(
            f"{_called(images)} and the model share no class: it has {_listed(own)}; the model {_listed(wanted)}"
        )
    make = {"single": _single, "multi": _multi, "mask": _mask}[kind]
    labels = make(images, own, wanted)
    if not labels.known.any():
        what = "mask" if kind == "mask" else "label"
        raise UsageError(f"{_called(images)} has no sample with a {what}: give a labelled split")
    return labels


def mask_pixels(
    images: PackedImages, labels: Labels, samples: NDArray[np.int64], *, threads: int = 2
) -> NDArray[np.int64]:
    """[len(samples), K]: pixels of each class in each mask; those to ignore are not counted.

    Reads every mask: about a millisecond for 256 px. Raises UndecodableImage naming a broken one.
    """
    own = threading.local()  # each thread reads by file descriptors of its own

    def start_thread() -> None:
        own.images = copy.copy(images)

    def count(i: int) -> NDArray[np.int64]:
        mask = labels.target(own.images, i).numpy()
        return np.bincount(mask.reshape(-1), minlength=256)[: len(labels.classes)]

    with ThreadPoolExecutor(threads, initializer=start_thread) as pool:
        rows = list(pool.map(count, samples.tolist()))
    return np.stack(rows) if rows else np.zeros((0, len(labels.classes)), np.int64)


def _own_kind(images: PackedImages) -> LabelKind:
    if images.manifest.label_kind == "none":
        raise UsageError(
            f"{_called(images)} has no class labels"
            + (", only masks: it is for segmentation" if images.manifest.mask_classes else "")
            + "; pack labelled images (class folders, or a table with a label column)"
        )
    return images.manifest.label_kind


def _refuse_other(images: PackedImages, kind: LabelKind, own: tuple[str, ...]) -> None:
    if kind == "mask" and not own:
        raise UsageError(f"{_called(images)} has no masks: pack it with masks=FOLDER or a column `mask`")
    if kind != "mask" and _own_kind(images) != kind:
        found, asked = ("one class", "several") if kind == "multi" else ("several labels", "one")
        raise UsageError(f"{_called(images)} has {found} for an image, the task needs {asked}")


def _single(images: PackedImages, own: tuple[str, ...], wanted: tuple[str, ...]) -> Labels:
    numbers = images.index.label.astype(np.int64)
    known = numbers >= 0
    foreign = sorted({own[number] for number in np.unique(numbers[known])} - set(wanted))
    if foreign:
        raise UsageError(
            f"{_called(images)} has images of {_listed(foreign)}, which the model doesn't know; "
            f"its classes are {_listed(wanted)}: leave these images out, or train on them"
        )
    table = np.array([*(wanted.index(name) if name in wanted else NONE for name in own), NONE])
    return Labels("single", wanted, known, table[np.where(known, numbers, -1)])


def _multi(images: PackedImages, own: tuple[str, ...], wanted: tuple[str, ...]) -> Labels:
    matrix = images.label_matrix
    assert matrix is not None
    values = np.full((len(images), len(wanted)), NONE, np.float32)
    for column, name in enumerate(wanted):
        if name in own:
            values[:, column] = matrix[:, own.index(name)]
    if missing := [name for name in wanted if name not in own]:
        logger.warning(
            "%s says nothing of %s: these classes are not judged on it", _called(images), _listed(missing)
        )
    return Labels("multi", wanted, np.any(values >= 0, axis=1), values)


def _mask(images: PackedImages, own: tuple[str, ...], wanted: tuple[str, ...]) -> Labels:
    table = np.full(256, IGNORE, np.int64)
    for value, name in enumerate(own):
        if name in wanted:
            table[value] = wanted.index(name)
    if foreign := [name for name in own if name not in wanted]:
        logger.warning(
            "%s: pixels of %s are ignored, the model doesn't know them", _called(images), _listed(foreign)
        )
    return Labels("mask", wanted, np.asarray(images.index.mask_offset != NONE), table)


def _called(images: PackedImages) -> str:
    return f"split {images.split!r} of {images.manifest.name}"


def _listed(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
