"""A few steps under torch's profiler: a trace for each rank, and the operations that take the most time."""

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from pydantic import Field

from essa_dist.settings import Config

log = logging.getLogger(__name__)

FOLDER = "profile"
ROWS = 12


class ProfileConfig(Config):
    start: int | None = Field(None, ge=1)
    """Profile from this step on, counted as in metrics.jsonl (null: never); let the first two steps pass."""
    steps: int = Field(3, ge=1)
    """How many steps."""


class ProfileWindow:
    """A context manager around the loop, told before and after each step; idle outside its steps.

    Each rank writes ``profile/rank_R_steps_A-B.json.gz`` in the run's folder (for chrome://tracing or
    ui.perfetto.dev); rank 0 logs a table. Where the loop ends within its steps, those that were made are written.
    """

    def __init__(self, config: ProfileConfig, run: Path, *, rank: int, device: torch.device) -> None:
        self.config, self.rank, self.device = config, rank, device
        self._folder = run / FOLDER
        self._first = config.start
        self._last = 0
        self._profile: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """``step``, from 1, is about to be made."""
        if step != self.config.start:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write of its own doings
        self._profile = torch.profiler.profile(activities=kinds, record_shapes=True)
        self._profile.start()

    def after(self, step: int) -> None:
        """``step`` was made."""
        if self._profile is not None and self._first is not None:
            self._profile.step()
            self._last = step
            if step - self._first + 1 >= self.config.steps:
                self._finish(step)

    def _finish(self, last: int) -> None:
        profile, self._profile = self._profile, None
        assert profile is not None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        profile.stop()
        path = self._folder / f"rank_{self.rank}_steps_{self._first}-{last}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            log.warning("the profile could not be written to %s: %s", path, error)
            return
        if self.rank == 0:
            by = f"self_{self.device.type}_time_total"
            table = profile.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=40)
            log.info("profile of steps %s to %s, trace in %s\n%s", self._first, last, path, table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None and error is None and self._last:
            self._finish(self._last)
        elif self._profile is not None:
            self._profile.stop()
            self._profile = None
