"""How far a pack is: a live line on a terminal, a plain line every half minute elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from essa_dist.progress import duration

logger = logging.getLogger(__name__)


class PackProgress:
    """A context manager around the packing of ``total`` files, of which ``start`` were done before."""

    def __init__(self, total: int, start: int = 0, *, every_s: float = 30.0) -> None:
        self.total, self.start, self.every_s = total, start, every_s
        self.images = self.bytes = self.left_out = 0
        self._files = start
        self._began = self._said = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        console = Console(file=sys.stderr)
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, files: int) -> None:
        """Tell that ``files`` of the files are done; the counts are the caller's to set before."""
        self._files = files
        now = time.monotonic()
        if now - self._said < (self.every_s if self._live is None else 0.1):
            return
        self._said = now
        if self._live is None:
            logger.info("%s", self.line(now - self._began))
        else:
            self._live.update(Text(self.line(now - self._began), no_wrap=True), refresh=True)

    def line(self, seconds: float) -> str:
        """``file 1200/5000  1260 images  310.2 img/s  81 MB  2 left out  ETA 12s``."""
        done = self._files - self.start
        rest = self.total - self._files
        words = [
            f"file {self._files}/{self.total}",
            f"{self.images} images",
            f"{self.images / max(seconds, 1e-9):.1f} img/s",
            f"{self.bytes / 1e6:.0f} MB",
            f"{self.left_out} left out",
            *([f"ETA {duration(rest * seconds / done)}"] if done else []),
        ]
        return "  ".join(words)
