"""What a protocol is given: features with their targets, in the numbering of the classes that bank and test share."""

from typing import NamedTuple

import torch
from torch import Tensor

from essa_dist.data.shards import PackedImages
from essa_dist.evaluation.classes import renumber


class Samples(NamedTuple):
    """n samples of a bank or a test set, on one device."""

    features: Tensor
    """[n, C] fp32"""
    targets: Tensor
    """[n] int64, an index into the classes; or float32 [n, K], where a sample may have several: 0, 1, -1 (not known)"""
    patients: Tensor | None = None
    """[n] int64, comparable between bank and test; None: not known"""
    numbers: Tensor | None = None
    """[n] int64, the same for the same image in bank and test; None: they have none in common"""

    @property
    def is_multilabel(self) -> bool:
        return self.targets.ndim == 2

    def take(self, rows: Tensor) -> "Samples":
        return Samples(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Samples":
        return Samples(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


def targets_of(images: PackedImages, classes: tuple[str, ...]) -> Tensor:
    """Targets of labelled images in the numbering of ``classes``; a class that the set doesn't know is -1 throughout."""
    if images.label_matrix is None:
        return renumber(torch.as_tensor(images.labels, dtype=torch.int64), images.classes, classes)
    own_nK = torch.tensor(images.label_matrix, dtype=torch.float32)
    targets_nK = own_nK.new_full((len(own_nK), len(classes)), -1)
    targets_nK[:, [classes.index(name) for name in images.classes]] = own_nK
    return targets_nK


def with_targets(
    features: tuple[Tensor, Tensor], bank: PackedImages, test: PackedImages, classes: tuple[str, ...]
) -> tuple[Samples, Samples]:
    """Bank and test as samples, with the patients and images that they share where that is known."""
    targets = targets_of(bank, classes), targets_of(test, classes)
    patients, numbers = _patients(bank, test), _numbers(bank, test)
    return Samples(features[0], targets[0], patients[0], numbers[0]), Samples(
        features[1], targets[1], patients[1], numbers[1]
    )


def _patients(bank: PackedImages, test: PackedImages) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of patients mean the same throughout one packed set, and nothing beyond it."""
    of_bank, of_test = _known_patients(bank), _known_patients(test)
    if of_bank is not None and of_test is not None and not _same_set(bank, test):
        of_test = of_test + int(of_bank.max()) + 1
    return of_bank, of_test


def _known_patients(images: PackedImages) -> Tensor | None:
    return None if images.patients is None else torch.tensor(images.patients, dtype=torch.int64)


def are_same(bank: PackedImages, test: PackedImages) -> bool:
    """Whether both are one split of one packed set: then it is known which image is which."""
    return _same_set(bank, test) and bank.split == test.split


def _numbers(bank: PackedImages, test: PackedImages) -> tuple[Tensor | None, Tensor | None]:
    if not are_same(bank, test):
        return None, None
    return torch.arange(len(bank)), torch.arange(len(test))


def _same_set(bank: PackedImages, test: PackedImages) -> bool:
    mine, other = bank.manifest.index_sha256, test.manifest.index_sha256
    return mine == other if mine and other else bank.folder == test.folder
