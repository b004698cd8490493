"""A safetensors file written piece by piece, with its checksum; read it with the safetensors library.

The library's own ``save_file`` wants all tensors of a file in memory at once, which on rank 0 would be those of
all ranks. Format: https://huggingface.co/docs/safetensors: length of the header, header in JSON, bytes.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""
_CHUNK = 4 << 20
"""Bytes that are hashed and written at a time, so that they are read from memory once."""


class TensorFile:
    """Made with the dtypes (the format's names) and shapes of all its tensors; then their bytes in the order ``names``."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
        self.names = in_order(tensors)
        header: dict[str, Any] = {}
        end = 0
        for name in self.names:
            dtype, shape = tensors[name]
            begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self.bytes = 0
        self._append(memoryview(struct.pack("<Q", len(text)) + text))

    def write(self, piece: Tensor) -> None:
        """Append a flat tensor on the CPU."""
        self._append(memoryview(piece.view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def _append(self, data: memoryview) -> None:
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            self._file.write(chunk)  # like the hash it lets other threads compute
            self._hash.update(chunk)
        self.bytes += len(data)

    def finish(self) -> dict[str, Any]:
        """Wait until it is on the disk; size and checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def in_order(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> list[str]:
    """Names as they lie in a file."""
    return sorted(tensors, key=lambda name: place_in_file(name, DTYPES[tensors[name][0]]))


def place_in_file(name: str, dtype: torch.dtype) -> tuple[int, str]:
    """What tensors are sorted by: wide dtypes first, so that every tensor is aligned."""
    return -dtype.itemsize, name
