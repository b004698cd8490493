"""Read one tar from its first byte to its last: where each image lies, what it is, what is wrong."""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.header import Meaning
from essa_dist.data.shard_urls import open_shard
from essa_dist.data.tars import BrokenTar, Stream, walk
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.facts import Facts
from essa_dist.packing.foreign.samples import Row, Samples
from essa_dist.packing.guards import FINGERPRINT, table_of

READ_BYTES = 1 << 20


@dataclass
class ShardScan:
    """What one tar holds."""

    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason); an empty key: the tar itself."""
    bytes: int = 0
    sha256: str = ""
    histogram: list[list[int]] = field(default_factory=list)
    """[3, 256]: of the pixels as they are shown; empty: none were decoded."""
    mask_top: int = 0
    """Highest class number in a mask."""
    fingerprints: str = ""
    """Base64 of one of type FINGERPRINT for each row; empty: not all images were decoded."""
    flags: dict[str, list[int]] = field(default_factory=dict)
    """Kind of privacy finding -> rows that have it."""
    turned: int = 0
    """Images whose EXIF orientation asks to be turned."""

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def fingerprint_rows(self) -> NDArray[np.void]:
        return np.frombuffer(base64.b64decode(self.fingerprints), FINGERPRINT)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        rows = [Row._make([*row[:-1], _facts(row[-1])]) for row in fields.pop("rows")]
        return cls(rows=rows, bad=[(key, reason) for key, reason in fields.pop("bad")], **fields)


def scan(shard: str, config: IndexConfig) -> ShardScan:
    """Scan the tar at a path or URL. What is wrong with it is in the result; nothing is raised for bad data."""
    samples, broken = Samples(config), ""
    try:
        with open_shard(shard) as stream:
            hashed = _Hashed(stream)
            try:
                for member in walk(hashed, samples.wanted, config.ignore):
                    samples.add(member)
            except BrokenTar as error:
                broken = str(error)
            while hashed.read(READ_BYTES):  # to the end, for the hash
                pass
    except Exception as error:  # storage of any kind
        told = error.strerror if isinstance(error, OSError) else None
        reason = told or " ".join(str(error).split()) or type(error).__name__
        return ShardScan(bad=[("", f"can't be read: {reason}")])
    rows, bad = samples.finish()
    if broken or not (rows or bad):
        bad.insert(0, ("", broken or "holds no images"))
    return ShardScan(
        rows=rows,
        bad=bad,
        bytes=hashed.bytes,
        sha256=hashed.hexdigest(),
        histogram=samples.histogram.tolist() if samples.counted else [],
        mask_top=samples.mask_top,
        fingerprints=base64.b64encode(table_of(samples.fingerprints).tobytes()).decode(),
        flags=samples.flags,
        turned=samples.turned,
    )


def _facts(fields: list[Any]) -> Facts:
    facts = Facts(*fields)
    if facts.meaning is None:
        return facts
    return facts._replace(meaning=Meaning(*facts.meaning))


class _Hashed:
    """A stream that keeps size and hash of what was read."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._digest, self.bytes = stream, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self.bytes += len(data)
        return data

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
