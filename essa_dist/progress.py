"""What a long loop shows while it runs: a live line on a terminal, a plain line every few seconds elsewhere."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

GIB = 2**30
_REFRESH_S = 0.1  # between two drawings of the live line, whatever the speed of the steps


class Progress:
    """A context manager around a loop of ``total`` steps, told of each step by :meth:`update`.

    Rates are of the last ``window`` steps, not since the start: the first steps start workers and fill caches and would
    be felt for long. The first and the last step always get a plain line. Silent on every rank but 0, unless ``enabled``
    says otherwise. Nothing runs in the background, so worker processes may be forked at any time.
    """

    def __init__(
        self,
        total: int,
        images_per_step: int,
        *,
        start: int = 0,
        every_s: float = 5.0,
        window: int = 20,
        enabled: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._images, self._every_s, self._clock = total, images_per_step, every_s, clock
        self._enabled = os.environ.get("RANK", "0") == "0" if enabled is None else enabled
        self._stream = stream if stream is not None else sys.stderr
        self._recent: deque[tuple[float, int, float]] = deque(
            maxlen=window + 1
        )  # time, step, seconds without data
        self._recent.append((clock(), start, 0.0))
        self._live: Live | None = None
        self._drawn_at: float | None = None
        self._pending: tuple[int, dict[str, float]] | None = (
            None  # the newest step, as long as it isn't shown
        )

    def __enter__(self) -> Self:
        self._recent[0] = (self._clock(), *self._recent[0][1:])
        console = Console(file=self._stream)
        if self._enabled and console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last step, however the loop ended, and give the terminal back."""
        try:
            self._show()
        finally:
            if self._live is not None:
                self._live.stop()

    def update(self, step: int, metrics: Mapping[str, float], *, data_wait: float = 0.0) -> None:
        """Tell that ``step`` (1..total) is done, after ``data_wait`` seconds without data.

        Of ``metrics`` the ``loss``, or else ``total``, is shown.
        """
        now = self._clock()
        self._recent.append((now, step, data_wait))
        self._pending = (step, dict(metrics))
        pause = self._every_s if self._live is None else _REFRESH_S
        if self._drawn_at is None or step >= self._total or now - self._drawn_at >= pause:
            self._show()

    def window(self) -> dict[str, float]:
        """Over the last steps: ``img_per_s`` of all ranks, ``data_wait`` as a share of the time (0..1); ``memory_gib``."""
        (start, first, _), *steps = self._recent
        end, last, _ = self._recent[-1]
        seconds = max(end - start, 1e-9)
        return {
            "img_per_s": (last - first) * self._images / seconds,
            "data_wait": min(sum(waited for _, _, waited in steps) / seconds, 1.0),
            "memory_gib": memory_gib(),
        }

    def _show(self) -> None:
        if self._pending is None or not self._enabled:
            return
        (step, metrics), self._pending, self._drawn_at = self._pending, None, self._clock()
        window = self.window()
        eta_s = (self._total - step) * self._images / max(window["img_per_s"], 1e-9)
        text = line(step, self._total, metrics | window, eta_s)
        if self._live is None:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        else:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def line(step: int, total: int, metrics: Mapping[str, float], eta_s: float) -> str:
    """One step in words: ``step 120/600  loss 9.8123  41.2 img/s  data wait 3 %  1.9 GiB  ETA 3m12s``."""
    loss = metrics.get("loss", metrics.get("total"))
    words = [
        f"step {step:>{len(str(total))}}/{total}",
        *([] if loss is None else [f"loss {loss:.4f}"]),
        f"{metrics['img_per_s']:.1f} img/s",
        f"data wait {100 * metrics['data_wait']:.0f} %",
        f"{metrics['memory_gib']:.1f} GiB",
        f"ETA {duration(eta_s)}",
    ]
    return "  ".join(words)


def duration(seconds: float) -> str:
    """``48s``, ``3m12s``, ``2h05m``, ``3d04h``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def memory_gib(*, peak: bool = False) -> float:
    """Memory of this process in GiB (2**30 bytes), now or at its highest so far.

    Once CUDA is in use: what torch holds allocated on the current device. Else the resident set of this process, without
    its worker processes. NaN where the system doesn't tell.
    """
    torch = sys.modules.get("torch")  # a process that never imported it holds nothing on a device
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / GIB
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return float("nan")
    name = "VmHWM:" if peak else "VmRSS:"  # not getrusage: its peak is inherited from the parent process
    sizes = [int(row.split()[1]) for row in status.splitlines() if row.startswith(name)]  # KiB
    return sizes[0] * 1024 / GIB if sizes else float("nan")
