"""Tars as others write them, tiny and made on the fly."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteTar = Callable[..., Path]


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """An encoded image unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def write_tar(tmp_path: Path) -> WriteTar:
    """``write_tar("t/train-0.tar", {"a.jpg": 3, "a.cls": "cat", "a.json": {...}})``: ints are seeds of pictures."""

    def write(name: str, files: dict[str, object] | Iterable[tuple[str, object]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, content in files.items() if isinstance(files, dict) else files:
                data = _encode(member, content)
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


def _encode(member: str, content: object) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, int):
        return picture(content, "JPEG" if member.endswith("jpg") else "PNG")
    return (content if isinstance(content, str) else json.dumps(content)).encode()
