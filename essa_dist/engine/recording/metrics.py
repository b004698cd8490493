"""What a run writes down at its logged steps: ``metrics.jsonl``, ``ranks.jsonl``, TensorBoard and other trackers."""

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from essa_dist import runfolder
from essa_dist.engine.recording.trackers import Trackers

MEASURED = frozenset(
    {
        "img_per_s",
        "data_wait",
        "memory_gib",
        "peak_memory_gib",
        "step_s",
        "step_s_min",
        "step_s_max",
        "data_wait_s_max",
        "slowest_rank",
        "slowest_ratio",
        "comm_s",
        "comm_s_min",
        "comm_s_max",
        "comm_share",
        "comm_bytes",
    }
)
"""What a row of metrics measures of the machine. All else is a function of the run, the same when it is repeated."""


class Metrics:
    """The rows of a run; on resume, those after the restored step are dropped.

    Only one process may be ``enabled``; on the others nothing is written.
    """

    def __init__(
        self, run: Path, *, start_step: int, enabled: bool, trackers: Trackers | None = None
    ) -> None:
        self.enabled, self.trackers, self.run = enabled, trackers, run
        if not enabled:
            return
        self._rows = Rows(run / runfolder.METRICS, start_step=start_step)
        self._ranks = Rows(run / runfolder.RANKS, start_step=start_step)
        self._board = SummaryWriter(str(run), purge_step=start_step + 1)
        threading.excepthook = _of_threads

    def write(
        self,
        row: Mapping[str, float],
        measured: Mapping[str, float] | None = None,
        *,
        ranks: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """One row, of one step: ``row`` as the run computes it, what was ``measured``, and its lists by rank.

        A number that is not finite becomes null, as JSON knows no NaN. Raises ValueError for a measured key that
        MEASURED lacks.
        """
        if not self.enabled:
            return
        if unknown := set(measured or {}) - MEASURED:
            raise ValueError(f"measured keys that MEASURED lacks: {sorted(unknown)}")
        whole = {**row, **(measured or {})}
        step = int(row["step"])
        self._rows.add(whole)
        if ranks is not None:
            measured_now = {
                key: by_rank for key, by_rank in ranks.items() if any(map(math.isfinite, by_rank))
            }
            self._ranks.add({"step": step, **measured_now})
        values = {key: value for key, value in whole.items() if key != "step"}
        with _naming(self.run):
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self.trackers is not None:
            self.trackers.log(step, values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.enabled:
            return
        try:
            self._board.close()
        except OSError:
            if error is None:  # else it is the cause, or an earlier one is
                raise
        finally:
            threading.excepthook = threading.__excepthook__


class Rows:
    """A file of JSON rows that each have a ``step``; those after ``start_step`` are dropped at the beginning."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        self.path = path
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= start_step]
        path.write_text(
            "".join(kept if start_step > 0 else [])
        )  # of a run at its beginning: not its step 0 either

    def add(self, row: Mapping[str, Any]) -> None:
        with _naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(_clean(row)) + "\n")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk shows itself when a file is closed, and then without its name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(error.filename or path)) from error


def _of_threads(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer keeps its error for the next scalar; as a traceback on stderr it would hide the cause."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(args)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_clean(item) for item in value]
    return value if math.isfinite(value) else None


def _complete_lines(path: Path) -> list[str]:
    """Lines that end; a kill may have cut the last one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
