"""What the guards found: ``findings.json`` of a packed set. Keys, counts and kinds, never values of a header."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from essa_dist.errors import DataError
from essa_dist.settings import Config

FINDINGS_FILE = "findings.json"


class Pair(Config):
    """Two samples that show the same."""

    a: str
    """Key of the one whose split comes first."""
    b: str
    splits: tuple[str, str]
    similarity: float
    """Correlation of fine detail; 1: the same pixels."""
    same_patient: bool


class Duplicates(Config):
    """Pairs of one kind. Of a picture that is there n times each further copy is paired with the first: n - 1 pairs."""

    across: int = 0
    """Pairs in two splits: what is learnt from one is tested on the other."""
    inside: int = 0
    """Pairs in one split, or in two that are both for training (`train`, `train_10`, `unlabelled`)."""
    same_patient: int = 0
    """Pairs, of both kinds, of one known patient: likely one picture that was stored twice."""
    by_splits: dict[str, int] = Field(default={})
    """Pairs by the two splits, ``test|train``."""
    pairs: tuple[Pair, ...] = ()
    """Those across splits first, the most similar first."""
    left_off: int = 0
    """Pairs that are counted and not named."""


class Examples(Config):
    """How many samples have something, and the keys of the first."""

    count: int
    keys: tuple[str, ...]


class Findings(Config):
    """All that was found in a set."""

    samples: int
    exact: Duplicates = Duplicates()
    near: Duplicates | None = Duplicates()
    """None: not looked for."""
    patients_across: Examples = Examples(count=0, keys=())
    """Patients with samples in two splits, and for each the key of a sample."""
    flags: dict[str, Examples] = Field(default={})
    """Findings about privacy, by kind."""
    dropped: dict[str, int] = Field(default={})
    """Samples left out as duplicates, by split."""
    notes: tuple[str, ...] = ()
    """What was not examined, and why."""
    drop: tuple[int, ...] = Field(default=(), exclude=True)
    """Rows of the table to leave out, ascending; not stored."""

    def summary(self) -> dict[str, Any]:
        """The counts, for the result of a command."""
        kinds = ("exact", self.exact), ("near", self.near)
        return {
            "duplicates": {
                kind: {"across": pairs.across, "inside": pairs.inside}
                for kind, pairs in kinds
                if pairs is not None
            },
            "flags": {kind: examples.count for kind, examples in self.flags.items()},
        }

    def write(self, folder: Path) -> None:
        """Write ``folder/findings.json``."""
        (folder / FINDINGS_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_findings(folder: Path) -> Findings | None:
    """Those of a packed set; None where there are none. Raises DataError where they can't be understood."""
    path = folder / FINDINGS_FILE
    if not path.is_file():
        return None
    try:
        return Findings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"{path} can't be understood: remove it, or pack the data again") from error
