"""A table of images: one row each, with its file and any of label, labels, patient, split, key and mask."""

from collections.abc import Iterable, Sequence
from itertools import starmap
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from essa_dist.errors import DataError, UsageError
from essa_dist.nearest import nearest
from essa_dist.packing.layouts import listing, masks
from essa_dist.packing.layouts.config import ColumnsConfig, LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, class_names, make_key, single_label, some, stem
from essa_dist.packing.layouts.listing import Table, read_table
from essa_dist.packing.layouts.walk import NOT_THERE, locate
from essa_dist.packing.source import Source

NO_FINDING = "No Finding"
"""In a column of several labels: none of them (NIH ChestX-ray14 writes it so)."""
_FLAGS = {"0": 0, "1": 1, "-1": -1, "": -1, "0.0": 0, "1.0": 1, "-1.0": -1}
_SETTINGS = ("root", "columns", "label_columns", "label_separator", "masks", "mask_suffix", "mask_classes")

Flags = tuple[int, ...] | None


def detect(src: Path) -> bool:
    """Whether ``src`` is a file called like a table."""
    return src.is_file() and src.suffix.lower() in listing.SUFFIXES


def find(src: Path, config: LayoutConfig) -> Found:
    """The images that a table lists.

    Raises UsageError for a table without the right columns, DataError for a row that can't be right.
    """
    if not src.is_file():
        raise UsageError(f"layout=table takes a CSV, TSV or Parquet file, and {src} is none: name the file")
    table = read_table(src)
    label_columns = _label_columns(table, config)
    _check_columns(table, config.columns, label_columns)
    rows = _rows(table, config.columns)
    files, folder, notes = _files([row.path for row in rows], src, config)
    mask_files, missing, said = _masks(table, folder, config)
    multi, names = _flags(table, config, label_columns)
    if label_columns:
        said.append(f"{src}: labels from {len(label_columns)} columns of 0 and 1: {some(label_columns)}")
    sources = []
    for row, file, mask, flags in zip(rows, files, mask_files, multi, strict=True):
        if file is None:
            missing.append((folder / row.path, NOT_THERE))
            continue
        label = None if names else row.label or None
        key = make_key(row.key or row.path)
        sources.append(Source(file, key, label, flags, row.patient or None, row.split or None, mask))
    single, kind = single_label(sources)
    mask_classes = config.mask_classes if any(mask_files) else ()
    return Found(
        sources,
        names or single,
        "multi" if names else kind,
        mask_classes,
        notes=(*notes, *said),
        missing=tuple(missing),
    )


class _Row(NamedTuple):
    path: str
    label: str
    patient: str
    split: str
    key: str


def _rows(table: Table, columns: ColumnsConfig) -> list[_Row]:
    names = [getattr(columns, field) for field in _Row._fields]
    rows = list(starmap(_Row, zip(*(_cells(table, name) for name in names), strict=True)))
    for number, row in enumerate(rows):
        if not row.path:
            raise DataError(f"{table.at(number)}: `{columns.path}` is empty")
        if row.split and not row.split.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"{table.at(number)}: split {row.split!r}: use letters, digits, - and _")
    spelt: dict[str, str] = {}
    for number, row in enumerate(rows):
        before = spelt.setdefault(row.split.lower(), row.split)
        if before != row.split:
            raise DataError(
                f"{table.at(number)}: split {row.split!r}, but {before!r} above: spell it one way"
            )
    return rows


def _cells(table: Table, name: str | None) -> list[str]:
    return table.columns.get(name or "", [""] * len(table))


def _files(
    paths: Sequence[str], src: Path, config: LayoutConfig
) -> tuple[list[Path | None], Path, list[str]]:
    """Each row's file, the folder they lie in, and what to say of it.

    Where no path leads anywhere from that folder, the files are looked for below it by the end of their paths.
    """
    root = Path(config.root) if config.root is not None else src.parent
    if not root.is_dir():
        raise UsageError(f"root={root} is no folder; name the folder from which the table's paths go")
    there = [path if path.is_file() else None for path in (root / path for path in paths)]
    if any(there) or Path(paths[0]).is_absolute():
        return there, root, []
    pictures, _ = masks.beside(root)
    located = locate(paths, pictures)
    if not any(located):
        raise DataError(
            f"{src}: none of its {len(paths)} files is there, the first would be {root / paths[0]}; "
            "root= names their folder"
        )
    return located, pictures, [f"{src}: the files were found below {pictures} by the end of their paths"]


def _masks(
    table: Table, folder: Path, config: LayoutConfig
) -> tuple[list[Path | None], list[tuple[Path, str]], list[str]]:
    """Each row's mask, listed masks that aren't there, and notes."""
    named = masks.mask_folder(config)
    if config.columns.mask in table.columns:
        base = named or folder
        listed = [base / name if name else None for name in _cells(table, config.columns.mask)]
        lost = {path for path in listed if path is not None and not path.is_file()}
        kept = [None if path in lost else path for path in listed]
        return kept, [(path, NOT_THERE) for path in sorted(lost)], []
    paths = [PurePosixPath(path) for path in _cells(table, config.columns.path)]
    if named is None:
        _, named = masks.beside(folder.parent if folder.name == masks.IMAGES else folder)
    if named is None:
        return [None] * len(paths), [], []
    found, notes = masks.from_folder(paths, named, config.mask_suffix)
    return found, [], notes


def _label_columns(table: Table, config: LayoutConfig) -> tuple[str, ...]:
    """The columns of one class each."""
    if config.label_columns != "auto":
        for name in config.label_columns:
            table.column(name)
        return config.label_columns
    used = set(config.columns.model_dump().values())
    if {config.columns.label, config.columns.labels} & set(table.columns):
        return ()
    return tuple(
        name
        for name, cells in table.columns.items()
        if name not in used and set(cells) <= set(_FLAGS) and set(cells) != {""}
    )


def _flags(
    table: Table, config: LayoutConfig, label_columns: Sequence[str]
) -> tuple[list[Flags], tuple[str, ...]]:
    """Each row's flags, and the classes they stand for; none where a sample has one class at most."""
    if label_columns:
        columns = [_numbers(table, name) for name in label_columns]
        rows = list(zip(*columns, strict=True))
        return [None if set(row) == {-1} else row for row in rows], tuple(label_columns)
    if config.columns.labels not in table.columns:
        return [None] * len(table), ()
    named = [_split(cell, config.label_separator) for cell in _cells(table, config.columns.labels)]
    classes = class_names(name for names in named for name in names if name != NO_FINDING)
    return [tuple(int(name in names) for name in classes) if names else None for names in named], classes


def _numbers(table: Table, name: str) -> list[int]:
    cells = table.columns[name]
    wrong = next((row for row, cell in enumerate(cells) if cell not in _FLAGS), None)
    if wrong is not None:
        raise DataError(
            f"{table.at(wrong)}: `{name}` is {cells[wrong]!r}; a label column holds 0, 1, -1 (not known) or nothing"
        )
    return [_FLAGS[cell] for cell in cells]


def _split(cell: str, separator: str) -> set[str]:
    return {name.strip() for name in cell.split(separator)} - {""}


def _check_columns(table: Table, columns: ColumnsConfig, label_columns: Iterable[str]) -> None:
    """``path`` must be there, and no column may look like a misspelling of one that is used."""
    wanted = {field: name for field, name in columns.model_dump().items() if name is not None}
    if {columns.label, columns.labels} <= set(table.columns):
        raise UsageError(
            f"{table.path} has both `{columns.label}` (one class) and `{columns.labels}` (several): leave one out with "
            "columns.label=null or columns.labels=null"
        )
    known = ", ".join(wanted.values())
    spare = [name for name in table.columns if name not in {*wanted.values(), *label_columns}]
    for field, name in wanted.items():
        if name in table.columns or (field == "label" and columns.labels in table.columns):
            continue
        if field == "labels" and columns.label in table.columns:
            continue
        near = nearest(name, spare)
        if near is not None:
            off = f", or columns.{field}=null to leave it out" if field != "path" else ""
            raise UsageError(
                f"{table.path}: no column `{name}`, but `{near}`: rename it or set columns.{field}={near}{off}; "
                f"known columns: {known}"
            )
        if field == "path" or name != ColumnsConfig.model_fields[field].default:
            guess = f" (columns.path={_looks_like_paths(table)}?)" if field == "path" else ""
            raise UsageError(
                f"{table.path}: no column `{name}`; it has: {', '.join(table.columns)}; "
                f"columns.{field}= names the one to take{guess}; known columns: {known}"
            )


def _looks_like_paths(table: Table) -> str:
    return next((name for name, cells in table.columns.items() if stem(cells[0]) != cells[0]), "...")


LAYOUT = Layout(detect, find, frozenset(_SETTINGS))
