"""What survives a pack that was broken off: its finished shards, and where to go on.

.OUT.partial/lock            held while a pack runs
             identity.json   of the settings and the files
             set/            the packed set as it grows
             journal/000000/ of each finished shard: index.arrow, fingerprints.npy, record.json
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.index import Index, read_index
from essa_dist.data.manifest import INDEX_FILE, Shard
from essa_dist.disk import flush
from essa_dist.packing.lock import REPLACED, partial_folder
from essa_dist.settings import Config

logger = logging.getLogger(__name__)

FINGERPRINTS = "fingerprints.npy"
DROPPED = "dropped.json"
Position = tuple[int, int]
"""Number of a source, and how many of its samples (and refusals) were dealt with."""


class LeftOut(Config):
    """One line of quarantine.csv."""

    path: str
    reason: str
    harmless: bool
    """Nothing is wrong with the file: it is blank, a duplicate, or no picture. The quota doesn't count it."""


class Record(Config):
    """What is known when a shard is finished; of the samples since the shard before."""

    shard: Shard
    position: Position
    """Where to go on."""
    histogram: tuple[tuple[int, ...], ...]
    """[3, 256], of shown values."""
    left_out: tuple[LeftOut, ...]
    flags: dict[str, tuple[int, ...]]
    """Kind of privacy finding -> samples of the shard that have it, ascending."""
    files: tuple[int, ...]
    """Number of the source of each sample."""


class Journal:
    """The folder ``.OUT.partial`` beside ``out``; while it is locked."""

    def __init__(self, out: Path) -> None:
        self.folder = partial_folder(out)
        self.set, self._entries = self.folder / "set", self.folder / "journal"
        self.records: list[Record] = []
        self.dropped: dict[str, str] = {}
        """Key and split of each sample that is a duplicate and not to be packed."""

    def open(self, identity: dict[str, str], guards: str) -> None:
        """Find what an earlier pack with the same ``identity`` finished, and remove everything else.

        ``identity``: a hash for each thing that the shards depend on, by its name; ``guards``: one for what duplicates
        depend on, once some were dropped.
        """
        before = _read_json(self.folder / "identity.json")
        dropped = _read_json(self.folder / DROPPED) or {"guards": guards, "keys": {}}
        if before is not None:
            now, then = identity | {"the guards": guards}, before | {"the guards": dropped["guards"]}
            changed = [name for name in now if now[name] != then.get(name)]
            if changed:
                logger.warning(
                    "%s was left by a pack that was broken off; %s changed since: starting anew",
                    self.folder,
                    " and ".join(changed),
                )
        if before is None or changed:
            _clear(self.folder)
            _write(self.folder / "identity.json", json.dumps(identity))
            dropped["keys"] = {}
        self.dropped, self._guards = dropped["keys"], guards
        self.set.mkdir(exist_ok=True)
        self._entries.mkdir(exist_ok=True)
        self._find_sound()
        self._remove_the_rest()

    def drop(self, samples: dict[str, str]) -> None:
        """Forget the shards from the first that holds one of ``samples`` (key and split), which are not to be packed."""
        self.dropped |= samples
        _write(self.folder / DROPPED, json.dumps({"guards": self._guards, "keys": self.dropped}))
        self._find_sound()
        self._remove_the_rest()

    def add(self, record: Record, index: Index, fingerprints: NDArray[np.void]) -> None:
        """Remember a finished shard, lastingly."""
        number = len(self.records)
        entry = self._entries / f"{number:06d}.new"
        entry.mkdir()
        index.write(entry)
        np.save(entry / FINGERPRINTS, fingerprints)
        _write(entry / "record.json", record.model_dump_json())
        for path in (self.set / record.shard.file, entry / INDEX_FILE, entry / FINGERPRINTS, entry):
            flush(path)
        entry.rename(self._entry(number))
        flush(self._entries)
        self.records.append(record)

    def join_index(self, folder: Path) -> None:
        """Write ``folder/index.arrow`` over all shards; peak memory: twice its size."""
        import pyarrow as pa

        parts = []
        for number in range(len(self.records)):
            with pa.memory_map(str(self._entry(number) / INDEX_FILE)) as source:
                parts.append(pa.ipc.open_file(source).read_all())
        (batch,) = pa.concat_tables(parts).combine_chunks().to_batches()
        with (
            pa.OSFile(str(folder / INDEX_FILE), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as file,
        ):
            file.write_batch(batch)

    def join_fingerprints(self) -> NDArray[np.void]:
        """Those of all samples, mapped from a file."""
        parts = [
            np.load(self._entry(number) / FINGERPRINTS, mmap_mode="r") for number in range(len(self.records))
        ]
        path = self.folder / FINGERPRINTS
        total = sum(len(part) for part in parts)
        joined = np.lib.format.open_memmap(path, mode="w+", dtype=parts[0].dtype, shape=(total,))
        start = 0
        for part in parts:
            joined[start : start + len(part)] = part
            start += len(part)
        return joined

    def move_into_place(self, out: Path) -> None:
        """Rename the finished set to ``out``; a set that is there makes way first. Nothing is left of the folder."""
        if out.exists():
            out.rename(self.folder / REPLACED)
        self.set.rename(out)
        flush(out.parent)
        shutil.rmtree(self.folder)

    def _entry(self, number: int) -> Path:
        return self._entries / f"{number:06d}"

    def _find_sound(self) -> None:
        """Take the records up to the first whose shard isn't as it was written, or holds what was dropped."""
        known, self.records = self.records, []
        while (fields := _read_json(self._entry(number := len(self.records)) / "record.json")) is not None:
            record = Record.model_validate(fields)
            if record not in known[number : number + 1] and not _is_sound(
                self.set / record.shard.file, record.shard
            ):
                logger.warning("%s isn't as it was written: packing on from it", self.set / record.shard.file)
                return
            if self.dropped and not self.dropped.keys().isdisjoint(read_index(self._entry(number)).key):
                return
            self.records.append(record)

    def _remove_the_rest(self) -> None:
        shards = {record.shard.file for record in self.records}
        entries = {self._entry(number).name for number in range(len(self.records))}
        for path in [*self.set.iterdir(), *self._entries.iterdir()]:
            if path.name not in shards | entries:
                _remove(path)


def digest(parts: Iterable[object]) -> str:
    """One hash of many things, by their ``repr``."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(repr(part).encode() + b"\0")
    return state.hexdigest()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    flush(new)
    new.rename(path)


def _is_sound(path: Path, shard: Shard) -> bool:
    if not path.is_file() or path.stat().st_size != shard.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
