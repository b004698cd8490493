"""The nearest name helps, or nothing is said."""

import pytest

from essa_dist.nearest import nearest

KEYS = ["out", "optim.lr", "backbone.name", "backbone.pos_embed", "objective.koleo_weight", "data.train"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("lr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("backbone.nmae", "backbone.name"),
        ("backbone_name", "backbone.name"),
        ("koleo", "objective.koleo_weight"),
        ("data.trian", "data.train"),
        ("backbone.zzzzzzzzzz", None),
        ("qqq", None),
    ],
)
def test_the_key_that_was_meant_is_found(given: str, found: str | None) -> None:
    assert nearest(given, KEYS) == found


def test_nothing_is_nearest_among_nothing() -> None:
    assert nearest("a", []) is None
