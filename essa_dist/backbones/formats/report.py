"""What became of every tensor when weights were loaded."""

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """``str`` of it is one line, ``details`` all of it. Names are timm's where they aren't said to be the file's."""

    format: str
    """Which of ``FORMATS``."""
    loaded: int
    """Tensors of the trunk that were filled."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(name in the file, name)"""
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...], str], ...] = ()
    """(name, shape in the file, shape in the trunk, rule)"""
    dropped: tuple[tuple[str, str], ...] = ()
    """(name in the file, why)"""
    missing: tuple[str, ...] = ()
    """Trunk tensors that the file lacks, as allowed; they keep their initial values."""
    unexpected: tuple[str, ...] = ()
    """Names in the file that nothing is known of. They are an error, so a finished load has none."""
    remarks: tuple[str, ...] = ()
    """What was set beside the tensors, such as the epsilon of norms."""

    def __str__(self) -> str:
        counts = {
            "renamed": self.renamed,
            "resized": self.resized,
            "dropped": self.dropped,
            "missing": self.missing,
            "unexpected": self.unexpected,
        }
        parts = [f"{len(entries)} {word}" for word, entries in counts.items() if entries]
        return "; ".join([", ".join([f"{self.format} layout, {self.loaded} tensors", *parts]), *self.remarks])

    def details(self) -> list[str]:
        """A line for every tensor that wasn't simply taken."""
        return [
            *(f"renamed {theirs} -> {ours}" for theirs, ours in self.renamed),
            *(f"resized {name} {list(was)} -> {list(now)}: {rule}" for name, was, now, rule in self.resized),
            *(f"dropped {name}: {why}" for name, why in self.dropped),
            *(f"missing {name}" for name in self.missing),
            *(f"unexpected {name}" for name in self.unexpected),
        ]
