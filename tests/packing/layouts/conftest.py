"""Trees of files with the names of the real ones. Layouts look at names, so that the files may be empty."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.packing.layouts import Found, LayoutConfig, find_sources

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """``tree("a/1.png", **{"list.csv": "path\\na/1.png\\n"})``: empty files, and files with contents."""

    def make(*empty: str, name: str = "data", **written: str) -> Path:
        root = tmp_path / name
        for path, text in {**dict.fromkeys(empty, ""), **written}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    return make


@pytest.fixture(scope="session")
def find() -> Callable[..., Found]:
    """``find(src, layout="table")``: ``find_sources`` with settings as a user gives them."""

    def of(src: Path, **settings: object) -> Found:
        return find_sources(src, LayoutConfig.model_validate(settings))

    return of


@pytest.fixture(scope="session")
def by_split() -> Callable[[Found], dict[str | None, int]]:
    """How many sources a split has."""
    return lambda found: dict(Counter(one.split for one in found.sources))


@pytest.fixture(scope="session")
def column() -> Callable[[Found, str], dict[str, object]]:
    """One field of every source, by key."""
    return lambda found, name: {one.key: getattr(one, name) for one in found.sources}
