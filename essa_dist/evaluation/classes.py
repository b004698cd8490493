"""One numbering of the classes for a bank and a test set, and the guard against leakage between them."""

import logging

import numpy as np
import torch
from torch import Tensor

from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)


def common_classes(bank: PackedImages, test: PackedImages) -> tuple[str, ...]:
    """Class names of the bank in its order, then those that only the test set knows.

    Warns of classes that the test set holds and the bank does not: they can't be predicted. Raises
    ``UsageError`` if either has unlabelled images, if one has several labels for an image and the other doesn't, if no
    name is in both, or if there is one class only (which is enough where an image may have any number of classes).
    """
    learnt, asked = _present(bank, "bank"), _present(test, "test")
    if not learnt & asked:
        raise UsageError(
            f"bank and test share no class: bank has {_listed(learnt)}; test has {_listed(asked)}: name them alike"
        )
    if missing := asked - learnt:
        logger.warning(
            "no image of the bank shows %s, so these test classes can't be found", _listed(missing)
        )
    classes = bank.classes + tuple(name for name in test.classes if name not in bank.classes)
    several = bank.label_matrix is not None
    if several != (test.label_matrix is not None):
        one, other = ("bank", "test") if several else ("test", "bank")
        raise UsageError(
            f"{one} has several labels for an image, {other} has one class for each: pack both in the same way"
        )
    if len(classes) < 2 and not several:
        raise UsageError(f"bank and test have one class only ({classes[0]}), a probe needs at least 2")
    return classes


def renumber(labels_n: Tensor, own: tuple[str, ...], common: tuple[str, ...]) -> Tensor:
    """Labels that index ``own`` as labels that index ``common``; int64 [n]."""
    return torch.tensor([common.index(name) if name in common else -1 for name in own])[labels_n]


def warn_of_overlap(bank: PackedImages, test: PackedImages, *, is_harmless: bool = False) -> int:
    """The number of test images in shards that the bank holds too, be it in a copy; a warning, if there are any.

    ``is_harmless``: what follows compares no image with itself.
    """
    of_bank = {shard.sha256 for shard in bank.manifest.shards if shard.split == bank.split}
    of_test = [shard for shard in test.manifest.shards if shard.split == test.split]
    shared = sum(shard.count for shard in of_test if shard.sha256 in of_bank)
    if shared and not is_harmless:
        logger.warning(
            "LEAKAGE: %d of the %d test images are in the bank too, so these figures say nothing about new images:"
            " choose disjoint splits for bank and test",
            shared,
            len(test),
        )
    return shared


def _present(images: PackedImages, role: str) -> set[str]:
    if images.label_matrix is not None:
        return {images.classes[i] for i in np.flatnonzero((images.label_matrix == 1).any(axis=0))}
    if images.labels is None:
        raise UsageError(
            f"split {images.split!r}, given as {role}, has images without label: give a labelled split"
        )
    return {images.classes[label] for label in np.unique(images.labels)}


def _listed(names: set[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more
