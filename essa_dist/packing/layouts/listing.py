"""Tables and lists as text: CSV, TSV and Parquet as columns of strings, with line numbers for messages."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from essa_dist.errors import DataError, UsageError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
SUFFIXES = (*SEPARATORS, *PARQUET)


@dataclass(frozen=True)
class Table:
    """Columns of equal length, all cells stripped text; an empty cell is an empty string."""

    path: Path
    columns: dict[str, list[str]]
    lines: Sequence[int]
    """Where each row stands: line of the file, or number of the row in a Parquet file, from 1."""

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> list[str]:
        """A column that must be there; UsageError where it isn't."""
        if name not in self.columns:
            raise UsageError(f"{self.path}: no column `{name}`; it has: {', '.join(self.columns)}")
        return self.columns[name]

    def at(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: Path) -> Table:
    """Read a CSV, TSV (UTF-8) or Parquet file.

    Raises UsageError where it isn't one, DataError where it has no rows or a row has more cells than the header.
    """
    table = _read_parquet(path) if path.suffix.lower() in PARQUET else _read_text(path)
    if not table.lines:
        raise DataError(f"{path} lists no images: it has a header and no rows")
    return table


def header(path: Path) -> tuple[str, ...]:
    """The names of the columns of a CSV or TSV; empty where it is not there or can't be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file, delimiter=SEPARATORS.get(path.suffix.lower(), ",")), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return ()
    return tuple(name.strip() for name in names)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that hold anything, stripped, with their numbers."""
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                yield number, line.strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8 ({error}); give a list of paths") from error


def _read_text(path: Path) -> Table:
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=SEPARATORS.get(path.suffix.lower(), ","))
            names = [name.strip() for name in next(reader, [])]
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append(row)
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{path} is not a CSV in UTF-8 ({error}); give a folder of images or a CSV, TSV or Parquet table"
        ) from error
    _check_names(path, names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) > len(names):
            raise DataError(f"{path}, line {line}: {len(row)} cells under {len(names)} columns; quote commas")
        row += [""] * (len(names) - len(row))
    columns = {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}
    return Table(path, columns, lines)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} is not a Parquet file ({reason}); give a CSV, TSV or Parquet table"
        ) from error
    _check_names(path, table.column_names)
    columns = {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}
    return Table(path, columns, range(1, table.num_rows + 1))


def _text(value: Any) -> str:
    """As it would stand in a CSV: whole numbers without a point, nothing for what is missing."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return "|".join(map(_text, value))
    return str(value).strip()


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two columns are called `{twice}`; rename one")
