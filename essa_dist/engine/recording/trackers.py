"""The run's rows in Weights & Biases and MLflow; a tracker that fails costs its rows, never the run.

Everything happens on a thread of its own, since a server that is down keeps its clients waiting for minutes. Addresses
and keys are the trackers' own affair: ``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME`` and the like.
"""

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from essa_dist.errors import Preempted, UsageError

log = logging.getLogger(__name__)

TrackerName = Literal["wandb", "mlflow"]

PROJECT = "essa_dist"
"""Of W&B, and name of MLflow's experiment, unless the environment names another."""
IDENTITY = "trackers.json"
"""In the run folder: which run of which tracker this is, so that a resumed run goes on in it."""
QUEUE = 1000
"""Rows that wait for a slow tracker; more are dropped."""
GOODBYE_S = {"finished": 60.0, "preempted": 10.0, "failed": 10.0}
"""How long the end of a run waits for them: a scheduler kills within some 30 s of its signal."""


class Tracker(Protocol):
    """All calls come from one thread."""

    def start(self, known: str | None) -> str:
        """Open the run with id ``known``, or a new one; its id."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, status: str) -> None:
        """``status``: finished, preempted or failed."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """UsageError with the extra to install, if the package of one is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"track={name} needs the package {name}, which is not installed: pip install 'essa_dist[{name}]'"
            )


class Trackers:
    """A context manager around a run; :meth:`log` returns at once."""

    def __init__(self, names: Sequence[TrackerName], run: Path, config: Mapping[str, Any]) -> None:
        """``config``: values by dotted key, shown beside the run."""
        self._run, self._config = run, dict(config)
        self._names = names
        self._live: dict[str, Tracker] = {}
        self._waiting: Queue[tuple[int, dict[str, float]] | str] = Queue(QUEUE)
        self._left = threading.Event()
        self._full = False
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)

    def __enter__(self) -> Self:
        if self._names:
            self._thread.start()
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a row over; where a tracker is so slow that too many wait, the row is dropped, with one warning."""
        if self._names:
            self._put((step, dict(values)))

    def _put(self, item: tuple[int, dict[str, float]] | str) -> None:
        try:
            self._waiting.put_nowait(item)
        except Full:
            if not self._full:
                log.warning("%s can't keep up: rows are left out there", " and ".join(self._names))
            self._full = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._names:
            return
        status = "finished" if error is None else "preempted" if isinstance(error, Preempted) else "failed"
        patience = GOODBYE_S[status]
        end = time.monotonic() + patience
        with contextlib.suppress(Full):
            self._waiting.put(status, timeout=patience)
        self._left.wait(max(0.0, end - time.monotonic()))
        if not self._left.is_set():
            log.warning(
                "%s didn't take the last rows within %.0f s; metrics.jsonl has them all",
                " and ".join(self._names),
                patience,
            )

    def _work(self) -> None:
        try:
            for name in self._names:
                with self._forgiving(name):
                    tracker: Tracker = TRACKERS[name](self._run.resolve(), self._config)
                    self._remember(name, tracker.start(self._known().get(name)))
                    self._live[name] = tracker
            while True:
                item = self._waiting.get()
                for known, live in list(self._live.items()):
                    with self._forgiving(known):
                        if isinstance(item, str):
                            live.finish(item)
                        else:
                            live.log(*item)
                if isinstance(item, str):
                    return
        finally:
            self._left.set()

    @contextlib.contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # whatever it is: wandb also raises KeyboardInterrupt and SystemExit
            self._live.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("%s gets no (more) rows of this run, which goes on without it: %s", name, reason)

    def _known(self) -> dict[str, str]:
        try:
            found = json.loads((self._run / IDENTITY).read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def _remember(self, name: str, identity: str) -> None:
        (self._run / IDENTITY).write_text(json.dumps(self._known() | {name: identity}, indent=1) + "\n")


class WandbTracker:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._run, self._config = run, config

    def start(self, known: str | None) -> str:
        import wandb

        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", self._run.name),
            dir=str(self._run),
            config=dict(self._config),
            id=known or secrets.token_hex(4),
            resume="allow",
            settings=wandb.Settings(init_timeout=60, silent=True, console="off", x_disable_stats=True),
        )
        # Rows that a kill took back come again with their old step, which W&B's own counter would refuse.
        self._wandb.define_metric("*", step_metric="step")
        return str(self._wandb.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._wandb.log({"step": step, **values})

    def finish(self, status: str) -> None:
        self._wandb.finish(exit_code=0 if status == "finished" else 1)


class MlflowTracker:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._run, self._config = run, config

    def start(self, known: str | None) -> str:
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = str(self._client.create_run(where, run_name=self._run.name).info.run_id)
        params = [Param(key, str(value)[:500]) for key, value in self._config.items()]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])
        return self._id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(key, float(v), now, step) for key, v in values.items()])

    def finish(self, status: str) -> None:
        ends = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, ends[status])


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
