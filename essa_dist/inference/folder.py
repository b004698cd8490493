"""The folder of results: parts that are finished or absent, so that a call that was killed can go on.

OUT/journal/identity.json   what the results depend on
    journal/00000.json      of each finished part: written when all its files are on the disk
    quarantine.csv          what was left out; at the end
    NAME.json               about the whole; written last
"""

import csv
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from essa_dist.backbones.weights import file_sha256
from essa_dist.data.manifest import QUARANTINE_FILE
from essa_dist.data.quota import BadQuota
from essa_dist.disk import flush
from essa_dist.errors import DataError, UsageError
from essa_dist.inference.interface import LeftOut
from essa_dist.packing.lock import lock
from essa_dist.settings import Config

log = logging.getLogger(__name__)

JOURNAL, IDENTITY, LOCK = "journal", "identity.json", "lock"


class Left(Config):
    """One line of quarantine.csv."""

    path: str
    reason: str
    harmless: bool


class Part(Config):
    """A finished part."""

    number: int
    rows: int
    """Pictures."""
    files: dict[str, str]
    """Path in the folder -> SHA-256."""
    left_out: tuple[Left, ...]
    about: tuple[dict[str, Any], ...] = ()
    """What else is known of its pictures, one after the other."""


class OutFolder:
    """The folder ``path`` of a call of ``verb``."""

    def __init__(self, path: Path, verb: str) -> None:
        self.path, self.verb = path, verb
        self._journal = path / JOURNAL

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise UsageError unless the folder may be used; changes nothing."""
        out = self.path
        if out.exists() and not out.is_dir():
            raise UsageError(f"out={out} is a file: name a folder")
        if self._is_unused():
            return
        if not (resume or overwrite):
            raise UsageError(f"out={out} exists: choose another, or say resume=true or overwrite=true")
        before = self._identity()
        if before is None or before["verb"] != self.verb:
            what = "overwrite=true would delete" if overwrite else "resume=true, but"
            raise UsageError(f"{what} out={out}, which essa {self.verb} has not written: choose another out")

    @contextmanager
    def hold(self, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Keep others out of the folder, made ready: new, emptied (overwrite) or as it was (resume).

        Raises what ``check`` does, and UsageError where another process writes in it, or has made what is there from
        something else than ``identity`` says.
        """
        self.check(resume=resume, overwrite=overwrite)
        held = lock(
            self.path, f"another process writes in out={self.path}: wait for it, or choose another out"
        )
        try:
            if overwrite:
                self._empty()
            before = self._identity()
            if before is not None:
                self._compare(before["identity"], identity)
            else:
                self._journal.mkdir(exist_ok=True)
                words = json.dumps({"verb": self.verb, "identity": identity}, indent=1)
                write(self._journal / IDENTITY, f"{words}\n".encode())
            yield
        finally:
            (self.path / LOCK).unlink(missing_ok=True)
            held.close()

    def finished(self) -> dict[int, Part]:
        """The parts whose files are all there, as they were written; others are told of and made again."""
        found = {}
        for path in sorted(self._journal.glob("[0-9]*.json")):
            part = Part.model_validate_json(path.read_bytes())
            changed = next((name for name, sha in part.files.items() if not self._is_whole(name, sha)), None)
            if changed is None:
                found[part.number] = part
            else:
                log.warning("%s is missing or changed: its part is made again", self.path / changed)
        return found

    def add(self, part: Part) -> None:
        """Remember a part, lastingly; its files are on the disk."""
        write(self._journal / f"{part.number:05d}.json", f"{part.model_dump_json()}\n".encode())

    def quarantine(self, parts: Sequence[Part]) -> dict[str, int]:
        """Write down what was left out; how many by reason."""
        left = [one for part in parts for one in part.left_out]
        path = self.path / QUARANTINE_FILE
        if not left:
            path.unlink(missing_ok=True)
            return {}
        rows = [{"path": one.path, "reason": one.reason} for one in left]
        write_csv(path, rows)
        reasons = [one.reason for one in left]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    def _is_unused(self) -> bool:
        """Whether there is nothing in it but what a start leaves that was killed at once."""
        if not self.path.exists():
            return True
        rest = {path.name for path in self.path.iterdir()} - {LOCK}
        return not rest or (rest == {JOURNAL} and not (self._journal / IDENTITY).exists())

    def _identity(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self._journal / IDENTITY).read_bytes())
        except FileNotFoundError:
            return None
        return found

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        plain = json.loads(json.dumps(now))
        changed = [
            f"{key} was {before.get(key)}, is {value}"
            for key, value in plain.items()
            if before.get(key) != value
        ]
        if changed:
            more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UsageError(
                f"resume=true would go on with something else in out={self.path}: {'; '.join(changed[:3])}{more}"
            )

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self.path / name
        return path.is_file() and file_sha256(path) == sha256

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def check_quota(left: Sequence[LeftOut | Left], quota: BadQuota, total: int) -> None:
    """Raise DataError where more is unreadable than allowed."""
    bad = [one for one in left if not one.harmless]
    allowed = quota.allowed(total)
    if len(bad) > allowed:
        key = bad[0].path if isinstance(bad[0], Left) else bad[0].key
        raise DataError(
            f"{len(bad)} of {total} images can't be read, and quota allows {allowed}; the first is {key}: "
            f"{bad[0].reason}. Mend or remove them, or raise quota.count"
        )


def write(path: Path, content: bytes) -> None:
    """A file that is whole or absent, on the disk."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_bytes(content)
    put_in_place(beside, path)


def put_in_place(beside: Path, path: Path) -> None:
    """Give a file that is written its name, lastingly."""
    flush(beside)
    beside.replace(path)
    flush(path.parent)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same keys, of which there is at least one."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue().encode())
