"""Where each sample of a packed data set lies, and what its pixels mean: ``index.arrow``.

An Arrow file, mapped and not read: it opens in milliseconds whatever its size, the processes of one machine share its
pages, and pandas, polars or DuckDB can query it. About 74 bytes a sample, and its key.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.manifest import INDEX_FILE
from essa_dist.errors import DataError

NONE = -1
"""In ``label``, ``labels``, ``patient`` and ``mask_offset``: there is none, or it is not known."""


@dataclass(frozen=True)
class Index:
    """Parallel arrays over the samples of all splits, in the order of the shards."""

    shard: NDArray[np.int32]
    """Position in ``manifest.shards``."""
    offset: NDArray[np.int64]
    """Of the image's first byte in its tar."""
    length: NDArray[np.int64]
    """Bytes of the encoded image."""
    crc32: NDArray[np.uint32]
    """Of these bytes (zlib's)."""
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    channels: NDArray[np.uint8]
    """1 or 3."""
    bits: NDArray[np.uint8]
    """8 or 16: the type in which the values are stored."""
    low: NDArray[np.float32]
    """Stored value that is shown black. Stored values always grow with brightness (MONOCHROME1 is turned when packed)."""
    high: NDArray[np.float32]
    """Stored value that is shown white; above ``low``."""
    slope: NDArray[np.float32]
    """Real value (Hounsfield units, ...) = slope * stored value + intercept. Negative for what was MONOCHROME1."""
    intercept: NDArray[np.float32]
    label: NDArray[np.int32]
    """Index into ``manifest.classes`` where each sample has one class; NONE: none."""
    patient: NDArray[np.int32]
    """A number for each patient, the same in all splits, that tells nothing else; NONE: not known."""
    mask_offset: NDArray[np.int64]
    """Of the first byte of the mask, a PNG of class numbers, in the same tar; NONE: no mask."""
    mask_length: NDArray[np.int64]
    key: Sequence[str]
    labels: NDArray[np.int8] | None = None
    """[n, classes] of 0, 1 and NONE, where a sample may have several classes."""

    def __len__(self) -> int:
        return len(self.offset)

    def rows(self, start: int, stop: int) -> "Index":
        """The samples of a range; views, nothing is copied."""
        return replace(self, **{name: column[start:stop] for name, column in self._columns()})

    def take(self, rows: NDArray[np.int64]) -> "Index":
        """Copies of the given samples."""
        taken: dict[str, Any] = {
            name: [column[int(i)] for i in rows] if name == "key" else column[rows]
            for name, column in self._columns()
        }
        return replace(self, **taken)

    def write(self, folder: Path) -> None:
        """Write ``folder/index.arrow``: identical contents give identical bytes."""
        import pyarrow as pa

        arrays = {name: _to_arrow(column) for name, column in self._columns()}
        batch = pa.record_batch(list(arrays.values()), names=list(arrays))
        with pa.OSFile(str(folder / INDEX_FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)

    def _columns(self) -> list[tuple[str, Any]]:
        columns = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, column) for name, column in columns if column is not None]


class Keys(Sequence[str]):
    """Sample keys over an Arrow column, decoded when asked for: millions open without making millions of strings."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Keys": ...
    def __getitem__(self, i: int | slice) -> "str | Keys":
        if isinstance(i, slice):
            start, stop, _ = i.indices(len(self))
            return Keys(self.column.slice(start, max(0, stop - start)))
        return str(self.column[int(i)].as_py())


def read_index(folder: Path) -> Index:
    """Map ``folder/index.arrow``; DataError where it is missing or damaged."""
    import pyarrow as pa

    path = folder / INDEX_FILE
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(
            mmap.MADV_RANDOM
        )  # the plan jumps: reading ahead would fill memory with pages of no use
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        if table.num_record_batches != 1:
            raise DataError(f"{path} has {table.num_record_batches} parts, not 1: pack the data again")
        batch = table.get_batch(0)
        return Index(**{name: _to_numpy(batch.column(name)) for name in batch.schema.names})
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} can't be read ({reason}): pack the data again") from error


def _to_arrow(column: Any) -> Any:
    import pyarrow as pa

    if isinstance(column, Keys):
        return column.column
    if not isinstance(column, np.ndarray):
        return pa.array(list(column), pa.large_string())
    if column.ndim == 1:
        return pa.array(np.ascontiguousarray(column))
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _to_numpy(column: Any) -> Any:
    """A view of the mapped column; by its buffer, since pyarrow's own ``to_numpy`` imports pandas (0.8 s, 35 MB)."""
    import pyarrow as pa

    if pa.types.is_large_string(column.type):
        return Keys(column)
    if pa.types.is_fixed_size_list(column.type):
        return _to_numpy(column.flatten()).reshape(len(column), column.type.list_size)
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)
