"""What every test stands on: no network, few threads, and the shared data where they are."""

import os
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before anything imports torch; subprocesses inherit them. Threads that compete for cores can be 10 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Seconds a test, for pytest-timeout where it is installed: one that hangs must not hang the suite.
os.environ.setdefault("PYTEST_TIMEOUT", "300")

import essa_dist  # noqa: F401  (before any test imports timm: it makes torchvision importable)

# nohup and a shell's & have these ignored, which every process started here would inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
REQUIRE_SHARED = os.environ.get("ESSA_REQUIRE_SHARED") == "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data, weights and golden values beside the repository; a skip where there is none."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here: its data, weights and golden values can't be used")
    return SHARED


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """``image_folder({"cat": 3, "dog": 2})`` makes a folder of PNG files ``cat/0.png`` ..."""

    def make(counts: dict[str, int], name: str = "images", suffix: str = "png") -> Path:
        root = tmp_path / name
        seed = 0
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(seed).save(root / folder / f"{i}.{suffix}")
                seed += 1
        return root

    return make


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """Smooth and coloured, so that no two are alike and JPEG keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def free_port() -> int:
    """A TCP port of localhost that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    # A worker can't send what file names of any bytes leave in a log: lone surrogates.
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where ``ESSA_REQUIRE_SHARED=1`` promises the shared folder, a test skipped for want of it has failed."""
    if not (REQUIRE_SHARED and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = report.longrepr[2]
    if "../shared" in reason:
        report.outcome = "failed"
        report.longrepr = f"{reason} (a failure, because ESSA_REQUIRE_SHARED=1)"
