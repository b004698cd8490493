"""The tiny run of the engine's tests, as the config file and the words that a user gives to a launcher."""

from pathlib import Path

import pytest

from tests.engine.conftest import packed, recipe

__all__ = ["packed", "recipe"]


@pytest.fixture
def run(recipe: list[str], tmp_path: Path) -> list[str]:
    """Words after ``essa adapt``: two steps; the run's folder is ``tmp_path / "run"``."""
    return [*recipe, "duration=2"]
