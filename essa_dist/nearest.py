"""The nearest of the names that are allowed, for a name that is not."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6  # difflib's own threshold for a close match
_LONG = 4  # letters from which a word inside another tells something: koleo in koleo_weight


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``word``, or None if none resembles it.

    Dotted names also count by their last part, so that a key written without its section, or under the wrong one, is
    still found.
    """
    best = max(allowed, key=lambda name: _likeness(word, name), default=None)
    return best if best is not None and _likeness(word, best) >= _ALIKE else None


def _likeness(word: str, name: str) -> float:
    # The last part weighs more: keys of one section are alike for their section alone.
    return 0.6 * _ratio(word.rpartition(".")[2], name.rpartition(".")[2]) + 0.4 * _ratio(word, name)


def _ratio(one: str, other: str) -> float:
    ratio = SequenceMatcher(None, one.lower(), other.lower()).ratio()
    is_part = len(one) >= _LONG and one in other
    return max(ratio, 0.75) if is_part else ratio
