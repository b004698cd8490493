"""What the layouts of published data sets have in common."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.found import make_key
from essa_dist.packing.layouts.listing import Table
from essa_dist.packing.layouts.walk import walk
from essa_dist.packing.source import Source

SPLITS = ("train", "val", "test")


def seed_42(count: int, held_out: float) -> list[str]:
    """The split of each of ``count`` rows, as the reference draws it.

    The rows' numbers are shuffled by ``random.Random(42)``; of the first ``int(count * held_out)`` the first half is
    validation and the rest test, all others are for training. (ChrisMats/medical_transformers and
    ``src/defaults/datasets.py`` of the APLA and ESSA code.)
    """
    order = list(range(count))
    random.Random(42).shuffle(order)
    held = int(count * held_out)
    splits = ["train"] * count
    for place, row in enumerate(order[:held]):
        splits[row] = "val" if place < held // 2 else "test"
    return splits


def one_hot(table: Table, classes: Sequence[str]) -> list[str]:
    """The class of each row, whose column alone holds 1; DataError where it isn't exactly one."""
    columns = [table.column(name) for name in classes]
    labels = []
    for row, cells in enumerate(zip(*columns, strict=True)):
        ones = [name for name, cell in zip(classes, cells, strict=True) if _is_one(cell, table.at(row))]
        if len(ones) != 1:
            what = " and ".join(ones) or "none"
            raise DataError(f"{table.at(row)}: exactly one of {', '.join(classes)} must be 1, got {what}")
        labels.append(ones[0])
    return labels


def class_folders(
    root: Path, classes: Mapping[str, str], split: str | None = None, patient: str | None = None
) -> list[Source]:
    """The images below each folder of ``root`` that is called like a key of ``classes``, with that class.

    ``patient``: regular expression searched in a file's name; its first group names the patient. Keys are the paths
    below ``root``, below the split if there is one.
    """
    sources = []
    for folder, label in classes.items():
        for path in walk(root / folder).files if (root / folder).is_dir() else []:
            relative = f"{split}/{folder}/{path}" if split else f"{folder}/{path}"
            sources.append(
                Source(
                    root / folder / path,
                    make_key(relative),
                    label,
                    patient=first_group(patient, path.name),
                    split=split,
                )
            )
    return sources


def first_group(pattern: str | None, text: str) -> str | None:
    """What the first group that takes part in a match holds; None where nothing matches."""
    match = re.search(pattern, text) if pattern is not None else None
    return next((group for group in match.groups() if group is not None), None) if match else None


def by_image(sources: Sequence[Source], what: str) -> tuple[list[Source], list[str]]:
    """A published division that parts what belongs together is kept, said, and not held against the set.

    Where patients (``what`` they are called: lesions, slides) lie in several splits, none is given on, with a note.
    """
    splits = defaultdict(set)
    for one in sources:
        if one.patient is not None:
            splits[one.patient].add(one.split)
    parted = sum(len(names) > 1 for names in splits.values())
    if not parted:
        return list(sources), []
    note = (
        f"the published division is by image: {parted} of {len(splits)} {what} have images in several splits; "
        f"to keep each in one, set reference_split=false and splits={{train: ..., ...}}"
    )
    return [one._replace(patient=None) for one in sources], [note]


def require(src: Path, layout: str, *names: str) -> list[Path]:
    """Paths in ``src`` that must be there; UsageError, naming all of them, where one isn't."""
    paths = [src / name for name in names]
    for path in paths:
        if not path.exists():
            raise UsageError(f"{src} has no {path.name}: layout={layout} needs {' and '.join(names)} in it")
    return paths


def first_folder(src: Path, *names: str) -> Path:
    """The first of these folders that is there, or ``src`` itself."""
    return next((src / name for name in names if (src / name).is_dir()), src)


def _is_one(cell: str, where: str) -> bool:
    if cell not in ("0", "1", "0.0", "1.0"):
        raise DataError(f"{where}: {cell!r} where 0 or 1 must stand")
    return cell.startswith("1")
