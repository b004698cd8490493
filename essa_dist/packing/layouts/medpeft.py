"""The split lists of MED-PEFT (RL4M/MED-PEFT, folder ``DatasetsSplits``) over the images of three chest X-ray sets.

A line is a path and a 0 or 1 for each label. The lists name no labels. NIH: the order in which the data set's authors
list them. CheXpert: the competition's five in their usual order, which the lists do not prove: the shares of ones in 200
training lines (0.31, 0.10, 0.09, 0.28, 0.44) fit it if uncertain atelectasis and edema count as present.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, Layout, Provenance, make_key, some
from essa_dist.packing.layouts.listing import read_lines
from essa_dist.packing.layouts.published import first_group
from essa_dist.packing.layouts.walk import NOT_THERE, locate
from essa_dist.packing.source import Source

LIST = re.compile(r"(?:^|.*[._-])(train_1|train_10|train_list|val_list|test_list)\.txt$")
SPLIT = {
    "train_list": "train",
    "train_10": "train_10",
    "train_1": "train_1",
    "val_list": "val",
    "test_list": "test",
}

FLAGS = ("0", "1", "-1")


class DataSet(NamedTuple):
    """One of the three, which the number of labels tells apart."""

    name: str
    classes: tuple[str, ...]
    patient: str
    """Regular expression searched in the listed path; its first group is the patient."""
    defaults: Provenance


DATA_SETS = (
    DataSet(
        "NIH ChestX-ray14",
        (
            "Atelectasis",
            "Cardiomegaly",
            "Effusion",
            "Infiltration",
            "Mass",
            "Nodule",
            "Pneumonia",
            "Pneumothorax",
            "Consolidation",
            "Edema",
            "Emphysema",
            "Fibrosis",
            "Pleural_Thickening",
            "Hernia",
        ),
        r"(\d+)_\d+\.\w+$",
        Provenance(
            "https://nihcc.app.box.com/v/ChestXray-NIHCC",
            "free use with attribution",
            "NIH Clinical Center; Wang et al. 2017",
        ),
    ),
    DataSet(
        "CheXpert",
        ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
        r"(patient\d+)",
        Provenance(
            "https://stanfordmlgroup.github.io/competitions/chexpert",
            "Stanford University Dataset Research Use Agreement",
            "Irvin et al. 2019, Stanford ML Group",
        ),
    ),
    DataSet(
        "RSNA Pneumonia",
        ("Pneumonia",),
        r"([^/]+)\.\w+$",
        Provenance(
            "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
            "rules of the Kaggle competition",
            "Radiological Society of North America; Shih et al. 2019",
        ),
    ),
)


class Line(NamedTuple):
    path: str
    labels: tuple[int, ...]


def detect(src: Path) -> bool:
    """By lists that lie beside the images, as the authors' readme has it. NIH's own ``test_list.txt`` holds no labels."""
    if not src.is_dir():
        return False
    lists = [path for path in src.glob("*.txt") if LIST.match(path.name)]
    return any(line.split()[-1] in FLAGS for path in lists for _, line in islice(read_lines(path), 1))


def find(src: Path, config: LayoutConfig) -> Found:
    """The listed images. Training lists of 1 % and 10 % become splits ``train_1`` and ``train_10`` where there are
    several, and ``train`` where there is one. As the lists overlap, keys of fractions begin with the split's name."""
    lists = _lists(src, config.lists)
    lines = {path: _read(path) for path in lists.values()}
    data_set = _data_set(lines)
    training = [name for name in lists if name.startswith("train")]
    listed = [line for path in lists.values() for line in lines[path]]
    files = iter(locate([line.path for line in listed], src))
    sources, missing = [], []
    for name, path in lists.items():
        split = "train" if training == [name] else SPLIT[name]
        prefix = f"{split}/" if split.startswith("train_") else ""
        for line, file in zip(lines[path], files, strict=False):
            if file is None:
                missing.append((src / line.path, NOT_THERE))
                continue
            patient = first_group(data_set.patient, line.path)
            key = prefix + make_key(line.path)
            sources.append(Source(file, key, labels=line.labels, patient=patient, split=split))
    if not sources:
        raise DataError(f"none of the {len(listed)} listed files is below {src}, e.g. {listed[0].path}")
    note = f"{data_set.name}, {len(data_set.classes)} labels, from {some([path.name for path in lists.values()])}"
    return Found(
        sources, data_set.classes, "multi", defaults=data_set.defaults, notes=(note,), missing=tuple(missing)
    )


def _lists(src: Path, given: str | Sequence[str] | None) -> dict[str, Path]:
    """The lists by what the end of their names says they are, in the order of ``SPLIT``."""
    entries = (
        [src] if given is None else [Path(given)] if isinstance(given, str) else [Path(one) for one in given]
    )
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in entries:
        for path in sorted(entry.glob("*.txt")) if entry.is_dir() else [entry]:
            match = LIST.match(path.name)
            if match and path.is_file():
                found[match[1]].append(path)
            elif not entry.is_dir():
                raise UsageError(f"lists: {path} is no file called like {', '.join(SPLIT)} with .txt")
    for paths in found.values():
        if len(paths) > 1:
            raise UsageError(
                f"{some(paths)} are the same list of different sets: name those of one, lists=[A,B,...]"
            )
    if not found:
        where = some(entries)
        raise UsageError(f"no lists in {where}: lists= names their folder, or {', '.join(SPLIT)} with .txt")
    return {name: found[name][0] for name in SPLIT if name in found}


def _read(path: Path) -> list[Line]:
    lines = []
    for number, text in read_lines(path):
        words = text.split()
        start = len(words)
        while start > 1 and words[start - 1] in FLAGS:
            start -= 1
        if start == len(words):
            raise DataError(f"{path}, line {number}: {text!r}; a line is a path and a 0 or 1 for each label")
        lines.append(Line(" ".join(words[:start]), tuple(map(int, words[start:]))))
        if len(lines[-1].labels) != len(lines[0].labels):
            wanted, got = len(lines[0].labels), len(lines[-1].labels)
            raise DataError(f"{path}, line {number}: {got} labels where the first line has {wanted}")
    if not lines:
        raise DataError(f"{path} lists no images")
    return lines


def _data_set(lines: dict[Path, list[Line]]) -> DataSet:
    counts = {path: len(of_list[0].labels) for path, of_list in lines.items()}
    if len(set(counts.values())) > 1:
        said = some([f"{path.name} {count}" for path, count in counts.items()])
        raise UsageError(
            f"the lists are of different data sets ({said} labels): name those of one, lists=[A,B,...]"
        )
    for data_set in DATA_SETS:
        if len(data_set.classes) in counts.values():
            return data_set
    known = ", ".join(f"{len(one.classes)} ({one.name})" for one in DATA_SETS)
    path, count = next(iter(counts.items()))
    raise UsageError(f"{path} has {count} labels a line; layout=medpeft knows {known}; others: layout=table")


LAYOUT = Layout(detect, find, frozenset({"lists"}))
