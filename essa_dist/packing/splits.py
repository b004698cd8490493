"""Which split every image goes to: no patient in two of them, classes shared out as evenly as that allows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.manifest import UNLABELLED
from essa_dist.data.plan import stable_seed
from essa_dist.data.shares import rarest_first, share_out
from essa_dist.errors import UsageError
from essa_dist.packing.source import Source

# G groups (patients, or single images), K kinds (each class, images without a label, images).


class Shared(NamedTuple):
    """A patient with images in splits that must not share any."""

    patient: str
    splits: tuple[str, ...]
    keys: tuple[str, ...]
    """One image of each of these splits."""


def assign_splits(sources: Sequence[Source], splits: Mapping[str, float], seed: int) -> list[Source]:
    """Give every source a split, and put them in the order of storage: by split, shuffled inside it.

    What has a split keeps it, and the rest of a patient who has one follows. Others are divided by the fractions
    ``splits``, patient by patient; without fractions they go to ``train``, or ``unlabelled`` where they have no label.

    Fractions hold for every class as well as for all images. Patients are taken in the order of their rarest class,
    larger ones first, else by a hash with the seed; each goes to the split that is least filled in its classes,
    relative to that split's share. How far counts of classes in splits are off, measured: below 1.2 images where each
    image has one class and no patient (1,000 sets of up to 8 classes and 4 splits); at most 2 images of 3 to 474 a
    class for the 14 labels and 682 patients of 1,000 chest X-rays (12 seeds; by chance it would be 6 to 30). One
    patient of many images can't be off by less than what it holds.
    Nothing depends on the order of the files. Cost: about 20 microseconds an image.
    Raises UsageError where there are too few patients for every split to get any.
    """
    place = {one.key: stable_seed("pack", seed, one.key) for one in sources}
    shuffled = sorted(sources, key=lambda one: place[one.key])
    decided: dict[str, str] = {}
    for one in sources:
        if one.split is not None and one.patient is not None:
            decided[one.patient] = min(one.split, decided.get(one.patient, one.split))
    free, placed = [], []
    for one in shuffled:
        split = one.split or decided.get(one.patient or "")
        if split is not None:
            placed.append(one._replace(split=split))
        elif splits:
            free.append(one)
        else:
            placed.append(one._replace(split="train" if _is_labelled(one) else UNLABELLED))
    placed += _divide(free, splits)
    _refuse_empty(placed, splits, free)
    placed = [one._replace(label=None, labels=None) if one.split == UNLABELLED else one for one in placed]
    return sorted(placed, key=lambda one: (str(one.split), place[one.key]))


def check_patients(sources: Iterable[Source]) -> list[Shared]:
    """Patients with images in several splits, in no telling order; see :func:`side` for which may share them."""
    images: dict[str, dict[str, str]] = defaultdict(dict)
    for one in sources:
        if one.patient is not None and one.split is not None:
            of_patient = images[one.patient]
            of_patient[one.split] = min(one.key, of_patient.get(one.split, one.key))
    shared = [
        Shared(patient, tuple(sorted(keys)), tuple(keys[split] for split in sorted(keys)))
        for patient, keys in images.items()
        if len({side(split) for split in keys}) > 1
    ]
    return sorted(shared, key=lambda one: stable_seed("patient", one.patient))


def side(split: str) -> str:
    """What a split is for. ``train``, fractions of it as ``train_10``, and ``unlabelled`` are all for training, so
    that the same patient, or image, in two of them is no leak."""
    return "train" if split.startswith("train_") or split == UNLABELLED else split


def patient_numbers(sources: Iterable[Source], seed: int) -> dict[str, int]:
    """A number from 0 for each patient, in the order of a hash with the seed: it tells neither name nor order."""
    patients = {one.patient for one in sources if one.patient is not None}
    ordered = sorted(patients, key=lambda patient: (stable_seed("patient", seed, patient), patient))
    return {patient: number for number, patient in enumerate(ordered)}


def _is_labelled(one: Source) -> bool:
    return one.label is not None or one.labels is not None


def _divide(free: Sequence[Source], splits: Mapping[str, float]) -> list[Source]:
    groups: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for one in free:
        groups["image" if one.patient is None else "patient", one.patient or one.key].append(one)
    if not groups:
        return []
    names = list(groups)
    counts_GK = _counts([groups[name] for name in names])
    chosen = share_out(counts_GK, rarest_first(counts_GK), np.array(list(splits.values())))
    labels = list(splits)
    return [
        one._replace(split=labels[split])
        for name, split in zip(names, chosen, strict=True)
        for one in groups[name]
    ]


def _counts(groups: Sequence[Sequence[Source]]) -> NDArray[np.float64]:
    """[G, K]: images of each kind in each group. The last kind is all images."""
    kinds_of = [Counter(kind for one in group for kind in _kinds(one)) for group in groups]
    kinds = sorted({kind for of_group in kinds_of for kind in of_group})
    number = {kind: i for i, kind in enumerate(kinds)}
    counts_GK = np.zeros((len(groups), len(kinds) + 1))
    for row, of_group in enumerate(kinds_of):
        for kind, count in of_group.items():
            counts_GK[row, number[kind]] = count
        counts_GK[row, -1] = len(groups[row])
    return counts_GK


def _kinds(one: Source) -> list[str]:
    if one.labels is not None:
        return [str(i) for i, flag in enumerate(one.labels) if flag == 1] or ["none of them"]
    return [UNLABELLED if one.label is None else f"class {one.label}"]


def _refuse_empty(placed: Sequence[Source], splits: Mapping[str, float], free: Sequence[Source]) -> None:
    empty = [split for split in splits if split not in {one.split for one in placed}]
    if not empty or not free:
        return
    patients = len({one.patient for one in free if one.patient is not None})
    whose = f" of {patients} patients, who are not parted; patients=none divides by image" if patients else ""
    raise UsageError(f"splits: nothing is left for {empty[0]} of {len(free)} images{whose}; use fewer splits")
