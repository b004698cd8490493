"""Small images as files and packed, a tiny model, and calls in processes of their own."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist import verbs
from essa_dist.cli import main
from essa_dist.inference.embed import EmbedConfig, embed
from tests.conftest import picture

CLASSES = {"cat": 7, "dog": 6}
SIZES = ((40, 32), (33, 48), (64, 64))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that tests fork, which have no others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images of two classes, of different sizes and kinds, one of them with 16 bits."""
    root = tmp_path_factory.mktemp("files")
    for label, count in CLASSES.items():
        (root / label).mkdir()
        for i in range(count):
            width, height = SIZES[i % len(SIZES)]
            suffix = ("png", "jpg", "bmp")[i % 3]
            picture(10 * len(label) + i + ord(label[0]), width, height).save(root / label / f"{i}.{suffix}")
    deep = np.random.default_rng(0).integers(300, 9000, (30, 44)).astype(np.uint16)
    Image.fromarray(deep).save(root / "cat" / "0.png")
    return root


@pytest.fixture(scope="session")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, in two splits."""
    out = tmp_path_factory.mktemp("packed") / "set"
    verbs.pack(folder, out=str(out), splits={"train": 0.5, "test": 0.5}, workers=0, report=False)
    return str(out)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reference to a tiny model that is the same each time it is loaded."""
    from safetensors.torch import save_file

    from essa_dist.backbones import BackboneConfig, build_backbone

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model = build_backbone(BackboneConfig(name="test_vit", weights="random"))
    save_file({name: tensor.contiguous() for name, tensor in model.vit.state_dict().items()}, path)
    return f"test_vit@{path}"


@pytest.fixture
def write_features(weights: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``write_features("name", images=..., ...)``: embed into a folder of that name."""

    def call(name: str, **settings: Any) -> dict[str, Any]:
        given = {"model": weights, "image_size": 32, "device": "cpu", "batch_size": 3, "part_items": 4}
        return embed(EmbedConfig(**{**given, "out": str(tmp_path / name), **settings}))

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Forked:
    """``essa WORDS`` in a process that is forked, so that nothing has to be imported again; dead after ``with``."""

    def __init__(
        self, words: list[str], environment: Mapping[str, str] | None = None, *, pause_s: float = 0
    ) -> None:
        self.process = multiprocessing.get_context("fork").Process(
            target=_run, args=(words, dict(environment or {}), pause_s)
        )
        self.process.start()

    def stop_when(self, reached: Callable[[], bool], number: signal.Signals) -> None:
        """Send a signal as soon as ``reached()``; AssertionError where the process ended before."""
        end = time.monotonic() + 60
        while not reached():
            assert self.process.is_alive(), f"ended before, with exit code {self.process.exitcode}"
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.005)
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def exit_code(self) -> int | None:
        self.process.join(60)
        return self.process.exitcode

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _run(words: list[str], environment: dict[str, str], pause_s: float) -> None:
    from accelerate.state import AcceleratorState

    from essa_dist.inference import folder

    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)  # type: ignore[no-untyped-call]  # the parent's
    add = folder.OutFolder.add

    def slowly(self: folder.OutFolder, part: folder.Part) -> None:
        add(self, part)
        time.sleep(pause_s)

    folder.OutFolder.add = slowly  # type: ignore[method-assign]
    os._exit(main(words))
