"""Results that are kept by what they were made from: tensors beside a JSON file, whole or not at all.

A name ends in a hash of everything that decides the contents, so what was made otherwise is never taken for it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from essa_dist.disk import whole, write_whole
from essa_dist.errors import UsageError


def content_key(made_from: Mapping[str, Any]) -> str:
    """Hash of a JSON-able mapping, in hexadecimal."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder of entries, each ``NAME-KEY.safetensors`` and ``NAME-KEY.json``; the JSON file is written last."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where no folder can be made there."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} can't be made a folder ({error.strerror}): name another") from error

    def read(
        self, name: str, made_from: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of an entry; None where it is not there, or not whole (then it is to be made again)."""
        tensors, told = self._files(name, made_from)
        try:
            facts = json.loads(told.read_text(encoding="utf-8"))
            if facts["made_from"] != json.loads(json.dumps(made_from)):
                return None
            return load_file(tensors), facts
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def write(
        self, name: str, made_from: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        file, told = self._files(name, made_from)
        with whole(file) as beside:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, beside)
        write_whole(told, json.dumps({**facts, "made_from": made_from}, indent=1) + "\n")

    def _files(self, name: str, made_from: Mapping[str, Any]) -> tuple[Path, Path]:
        readable = re.sub(r"[^A-Za-z0-9_.+-]+", "_", name)[:100]
        stem = f"{readable}-{content_key(made_from)[:16]}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"
