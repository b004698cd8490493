"""What a page is made of: plain values that the template prints and that know nothing of HTML."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A PNG file with the words that stand for it when it can't be seen (``alt``) and under it (``caption``)."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Text cells; the first cell of a row names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Missing:
    """Something the run doesn't have, and the command that would make it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Details:
    """A long text, shown folded."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One heading of the page and what stands below it, in this order."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: tuple[Table, ...] = ()
    details: tuple[Details, ...] = ()
    missing: tuple[Missing, ...] = ()
