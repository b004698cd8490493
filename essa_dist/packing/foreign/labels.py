"""From the labels that samples carry to class numbers."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import NONE
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.facts import Facts

logger = logging.getLogger(__name__)

NUMBERED = 100_000
"""Labels that are numbers below this are class numbers, and gaps between them are classes without samples."""
FEW_TEXTS = 16
"""So many different texts can be names of classes, however few samples there are."""


class Labels(NamedTuple):
    """Of samples, in their order."""

    kind: Literal["none", "single", "multi"]
    classes: tuple[str, ...]
    numbers: NDArray[np.int32]
    """NONE: no label."""
    flags: NDArray[np.int8] | None
    """[n, classes] of 0, 1 and NONE where the kind is multi."""
    bad: dict[int, str]
    """Samples whose label can't be understood."""

    def known(self, i: int) -> bool:
        """Whether sample ``i`` has a label."""
        return bool(self.numbers[i] != NONE if self.flags is None else (self.flags[i] != NONE).any())


def resolve(facts: Sequence[Facts], config: IndexConfig, former: tuple[str, ...] = ()) -> Labels:
    """Class numbers of samples. ``former``: classes that an earlier manifest names; used where all labels fit them."""
    labels = _resolve(facts, config, config.classes or former)
    if not labels.bad or config.classes or not former:
        return labels
    logger.warning("the classes of the earlier manifest don't fit the labels: it is not used for them")
    return _resolve(facts, config, ())


def _resolve(facts: Sequence[Facts], config: IndexConfig, names: tuple[str, ...]) -> Labels:
    single = [one.label for one in facts]
    if config.label == "txt" or (config.label == "auto" and not any(_labelled(one) for one in facts)):
        single = _texts([one.text for one in facts], certain=config.label == "txt")
    several = sum(one.labels is not None for one in facts)
    if config.label == "none" or not (several or any(one is not None for one in single)):
        return Labels("none", (), np.full(len(facts), NONE, np.int32), None, {})
    if several > sum(one is not None for one in single):
        return _multi(facts, names)
    return _single(single, names)


def _labelled(one: Facts) -> bool:
    return one.label is not None or one.labels is not None


def _texts(texts: list[str | None], *, certain: bool) -> list[str | None]:
    """The texts, or nothing where they look like captions: nearly every sample has one of its own."""
    different = len({text for text in texts if text is not None})
    if certain or different <= max(FEW_TEXTS, len(texts) // 20):
        return texts
    logger.warning(
        "%d different .txt are taken for captions, not classes; label=txt takes them all the same", different
    )
    return [None] * len(texts)


def _single(labels: Sequence[str | None], names: tuple[str, ...]) -> Labels:
    found = {label for label in labels if label is not None}
    classes = names or _class_names(found)
    number = {name: i for i, name in enumerate(classes)}
    by_number = {
        str(i): i for i in range(len(classes))
    }  # a .cls holds numbers, the names are known from elsewhere
    numbers = np.full(len(labels), NONE, np.int32)
    bad = {}
    for i, label in enumerate(labels):
        if label is None:
            continue
        place = number.get(label, by_number.get(label))
        if place is None:
            bad[i] = "its label is none of the classes"
        else:
            numbers[i] = place
    return Labels("single", classes, numbers, None, bad)


def _multi(facts: Sequence[Facts], names: tuple[str, ...]) -> Labels:
    found = {name for one in facts if isinstance(one.labels, dict) for name in one.labels}
    width = max((len(one.labels) for one in facts if isinstance(one.labels, list)), default=0)
    classes = names or (_class_names(found) if found else tuple(str(i) for i in range(width)))
    number = {name: i for i, name in enumerate(classes)}
    flags = np.full((len(facts), len(classes)), NONE, np.int8)
    bad = {}
    for i, one in enumerate(facts):
        if isinstance(one.labels, list) and len(one.labels) == len(classes):
            flags[i] = one.labels
        elif isinstance(one.labels, dict) and one.labels.keys() <= number.keys():
            flags[i] = 0  # a list of names leaves out those that don't hold
            for name, flag in one.labels.items():
                flags[i, number[name]] = flag
        elif one.labels is not None:
            bad[i] = f"its labels don't fit the {len(classes)} classes"
    return Labels("multi", classes, np.full(len(facts), NONE, np.int32), flags, bad)


def _class_names(found: set[str]) -> tuple[str, ...]:
    """Sorted names; where all are numbers, all from 0 to the highest, so that a label is the number that was given."""
    if not all(name.isdecimal() and str(int(name)) == name for name in found):
        return tuple(sorted(found))
    top = max(int(name) for name in found)
    return tuple(str(i) for i in (range(top + 1) if top < NUMBERED else sorted(int(name) for name in found)))
