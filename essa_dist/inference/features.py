"""Features of images on the disk: parts of Parquet or npz, and reading them.

Shapes: n pictures, C channels, N patches; of one picture [C], or [N, C].
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from essa_dist.errors import DataError, UsageError
from essa_dist.inference.folder import put_in_place
from essa_dist.inference.interface import Facts

Format = Literal["parquet", "npz"]
ABOUT = "embeddings.json"
FOLDER = "features"
"""Where the parts lie: a folder of nothing else, which pandas, polars and pyarrow read as one table."""
ROW_GROUP = 32 * 2**20
"""Bytes of features that are held before they are written."""


class Embeddings(NamedTuple):
    """What :func:`read_embeddings` gives."""

    keys: list[str]
    features: NDArray[Any]
    """[n, C], or [n, N, C] of patches; fp32 or fp16."""


class Table(NamedTuple):
    """What the columns beside ``key`` and ``feature`` are."""

    shape: tuple[int, ...]
    dtype: Literal["fp32", "fp16"]
    split: bool
    classes: int
    """0: no labels."""
    several: bool
    patient: bool

    @property
    def bytes(self) -> int:
        """Of the features of one picture."""
        return int(np.prod(self.shape)) * (4 if self.dtype == "fp32" else 2)


class Writer(Protocol):
    """Writes one part, under another name until ``close``."""

    def add(self, keys: Sequence[str], facts: Sequence[Facts], features: NDArray[Any]) -> None: ...

    def close(self) -> Path:
        """Finish the part; its file, which is on the disk."""
        ...


def open_writer(folder: Path, number: int, table: Table, format: Format) -> Writer:
    """For part ``number`` in ``folder/features``."""
    path = folder / FOLDER / f"part-{number:05d}.{format}"
    path.parent.mkdir(exist_ok=True)
    return _Parquet(path, table) if format == "parquet" else _Npz(path, table)


def read_embeddings(folder: str | Path) -> Embeddings:
    """Keys and features that ``essa embed`` wrote, in the order of its images.

    Raises UsageError where ``folder`` holds none, DataError where they are not complete.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except FileNotFoundError:
        why = "are not complete: go on with resume=true" if (folder / FOLDER).is_dir() else "are not there"
        raise UsageError(f"{folder}: no {ABOUT}, so its features {why}") from None
    read = _read_parquet if about["format"] == "parquet" else _read_npz
    parts = []
    for part in about["parts"]:
        path = folder / part["file"]
        if not path.is_file():
            raise DataError(f"{path} is missing: make it again with resume=true")
        parts.append(read(path))
    keys = [key for names, _ in parts for key in names]
    return Embeddings(keys, np.concatenate([features for _, features in parts]).reshape(-1, *about["shape"]))


def _columns(facts: Sequence[Facts], table: Table) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    if table.split:
        columns["split"] = [one.split for one in facts]
    if table.classes and not table.several:
        columns["label"] = [one.label for one in facts]
    if table.classes and table.several:
        columns["labels"] = [one.labels for one in facts]
    if table.patient:
        columns["patient"] = [one.patient for one in facts]
    return columns


class _Parquet:
    def __init__(self, path: Path, table: Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self._beside, self._table = path, path.with_name(f".{path.name}.writing"), table
        value = pa.float32() if table.dtype == "fp32" else pa.float16()
        kinds = {
            "split": pa.string(),
            "label": pa.int32(),
            "labels": pa.list_(pa.int8(), table.classes),
            "patient": pa.int32(),
        }
        size = int(np.prod(table.shape))
        self._schema = pa.schema(
            [
                ("key", pa.string()),
                *((name, kinds[name]) for name in _columns([], table)),
                ("feature", pa.list_(value, size)),
            ]
        )
        # Features don't get smaller by compression or dictionaries, which would take most of the time.
        self._file = pq.ParquetWriter(self._beside, self._schema, compression="none", use_dictionary=False)
        self._held: list[Any] = []

    def add(self, keys: Sequence[str], facts: Sequence[Facts], features: NDArray[Any]) -> None:
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(features).reshape(-1))
        columns = {"key": list(keys)} | _columns(facts, self._table)
        columns["feature"] = pa.FixedSizeListArray.from_arrays(
            flat, self._schema.field("feature").type.list_size
        )
        self._held.append(pa.table(columns, schema=self._schema))
        if sum(map(len, self._held)) * self._table.bytes >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self._held:
            self._file.write_table(pa.concat_tables(self._held).combine_chunks())
        self._held = []

    def close(self) -> Path:
        self._write()
        self._file.close()
        put_in_place(self._beside, self._path)
        return self._path


class _Npz:
    """Holds the whole part. What is not known is -1, or an empty text."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path, self._table = path, table
        self._keys: list[str] = []
        self._facts: list[Facts] = []
        dtype = np.float32 if table.dtype == "fp32" else np.float16
        self._features: list[NDArray[Any]] = [np.zeros((0, *table.shape), dtype)]

    def add(self, keys: Sequence[str], facts: Sequence[Facts], features: NDArray[Any]) -> None:
        self._keys += keys
        self._facts += facts
        self._features.append(features)

    def close(self) -> Path:
        columns: Mapping[str, Any] = {
            name: np.array([_known(name, value, self._table) for value in values])
            for name, values in _columns(self._facts, self._table).items()
        }
        beside = self._path.with_name(f".{self._path.name}.writing")
        with beside.open("wb") as file:
            np.savez(
                file, key=np.array(self._keys, np.str_), feature=np.concatenate(self._features), **columns
            )
        put_in_place(beside, self._path)
        return self._path


def _known(name: str, value: Any, table: Table) -> Any:
    if value is not None:
        return value
    return {"split": "", "labels": [-1] * table.classes}.get(name, -1)


def _read_parquet(path: Path) -> tuple[list[str], NDArray[Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "feature"]).combine_chunks()
    column = table["feature"].chunk(0) if table.num_rows else None
    flat = table["feature"].combine_chunks().flatten() if column is None else column.flatten()
    return table["key"].to_pylist(), flat.to_numpy(zero_copy_only=False)


def _read_npz(path: Path) -> tuple[list[str], NDArray[Any]]:
    with np.load(path) as held:
        return held["key"].tolist(), held["feature"].reshape(-1)
