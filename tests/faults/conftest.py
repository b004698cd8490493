"""The tiny run of the engine's tests, here to be broken, and processes that are ready to run it."""

from collections.abc import Iterator

import pytest

from tests.engine.conftest import packed, recipe
from tests.faults.drilling import Drill
from tests.faults.zygote import Zygote

__all__ = ["packed", "recipe"]


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("drills")) as started:
        yield started


@pytest.fixture(scope="session")
def pair(packed: str, tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """A run on two ranks, for drills, and what it finds when nothing befalls it."""
    drill = Drill.tiny(packed, tmp_path_factory.mktemp("pair"))
    drill.run_straight()
    return drill


@pytest.fixture(scope="session")
def lone(packed: str, tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """The same on one process."""
    return Drill.tiny(packed, tmp_path_factory.mktemp("lone"), ranks=1)
