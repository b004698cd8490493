"""``train.txt``, ``val.txt`` and ``test.txt`` with a path a line, which say in which split each image is."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from essa_dist.errors import DataError
from essa_dist.packing.layouts.listing import read_lines
from essa_dist.packing.layouts.published import SPLITS
from essa_dist.packing.layouts.walk import NOT_THERE
from essa_dist.packing.source import Source

Missing = tuple[tuple[Path, str], ...]


def split_by_lists(
    sources: Sequence[Source], folder: Path, parts: int = 2
) -> tuple[list[Source], Missing, list[str]]:
    """The sources that are listed, each with its split; all of them, as they are, where there are no lists.

    Also listed files that aren't there, and notes. Paths are compared by their last ``parts`` parts.
    Raises DataError where a file is listed in two splits.
    """
    lists = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    if not lists:
        return list(sources), (), []
    split_of: dict[tuple[str, ...], str] = {}
    paths: dict[tuple[str, ...], str] = {}
    for split, path in lists.items():
        for number, line in read_lines(path):
            tail = PurePosixPath(line).parts[-parts:]
            if split_of.setdefault(tail, split) != split:
                raise DataError(f"{path}, line {number}: {line} is in {split_of[tail]}.txt too; list it once")
            paths[tail] = line
    tails = [one.path.parts[-parts:] for one in sources]
    kept = [one._replace(split=split_of[t]) for one, t in zip(sources, tails, strict=True) if t in split_of]
    missing = tuple((folder / paths[tail], NOT_THERE) for tail in paths.keys() - set(tails))
    notes = [f"the splits are those of {', '.join(path.name for path in lists.values())} in {folder}"]
    if left := len(sources) - len(kept):
        notes.append(f"{left} images are in none of these lists and are left out")
    return kept, tuple(sorted(missing)), notes
