"""A rank that behaves like a run without training: a trial of it takes moments. Run as ``python stand_in.py adapt FILE ...``.

What it does is said by ``data.train``, words of the form ``what@number``:

- ``pace@S``: seconds a step. ``waits@N``: at step N, until the trial's folder has a file ``go``.
- ``diverges@N``, ``memory@N``, ``broken@N``: at step N it ends for such a reason; ``killed@N``: as if from outside.
- ``nulls@N``: the canary of step N is no number.
- ``stubborn@1``: SIGTERM, and the death of who started it, are ignored.

Ranks but the first wait for it, like ranks in a collective; ``other@1``: a rank that isn't the first diverges.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from essa_dist.parent import tell_of_parents_death


def canary_knn(lr: float, step: int) -> float:
    """Best at lr=1e-3, and better with every step."""
    found: float = (1 - 0.5 ** (step / 4)) / (1 + abs(math.log10(lr) + 3))
    return found


def starts(trial: Path) -> list[dict[str, Any]]:
    """Every start of a rank of the trial in this folder, by time."""
    file = trial / "starts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def settings(base: Path, words: list[str]) -> dict[str, Any]:
    """Of ``base``, with ``a.b=value`` laid over them."""
    config = yaml.safe_load(base.read_text())
    for word in words:
        path, _, value = word.partition("=")
        *above, name = path.split(".")
        inner = config
        for key in above:
            inner = inner.setdefault(key, {})
        try:
            inner[name] = float(value)  # of YAML, 1e-05 is a text
        except ValueError:
            inner[name] = yaml.safe_load(value)
    return dict(config)


class Run:
    """One rank of a run."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.out, self.config = Path(config["out"]), config
        self.trial = self.out.parent
        told = (word.partition("@") for word in config["data"]["train"].split())
        self.does = {what: float(number) for what, _, number in told}
        self.lr, self.rank = config["optim"]["lr"], int(os.environ["RANK"])
        self.step, self.path = 0, list[list[Any]]()
        if "stubborn" in self.does:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            tell_of_parents_death(signal.SIGTERM)

    def begin(self) -> None:
        """From the newest checkpoint, where there is one."""
        known = sorted(self.out.glob("checkpoints/step_*/COMMITTED"))
        if known:
            state = json.loads((known[-1].parent / "state.json").read_text())
            self.step, self.path = state["step"], state["path"]
        named = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        start = {"pid": os.getpid(), "run": self.out.name, "step": self.step, "lr": self.lr}
        start |= {name: os.environ[name] for name in (*named, "MASTER_ADDR", "MASTER_PORT")}
        start["node"] = os.environ["RAY_RAYLET_PID"]
        with (self.trial / "starts.jsonl").open("a") as file:
            file.write(json.dumps(start) + "\n")

    def train(self) -> None:
        """Step for step, with a look and a checkpoint where the settings say so."""
        self.out.mkdir(exist_ok=True)
        (self.out / "config.yaml").write_text(yaml.safe_dump(self.config))
        metrics = self.out / "metrics.jsonl"
        rows = metrics.read_text().splitlines() if metrics.is_file() else []
        kept = [row + "\n" for row in rows if json.loads(row)["step"] <= self.step]
        metrics.write_text("".join(kept))
        while self.step < self.config["duration"]:
            self.step += 1
            self.path.append([self.trial.name, self.step, self.lr])
            self._misbehave()
            if self.step % self.config["canary"]["every"] == 0:
                self._look(metrics)
            if self.step % self.config["checkpoint"]["every"] == 0 or self.step == self.config["duration"]:
                self._save()
        (self.out / "summary.json").write_text("{}")

    def follow(self) -> None:
        """Wait for the first rank, like one in a collective."""
        while not (self.out / "summary.json").exists():
            time.sleep(0.05)
            if "other" in self.does and (self.out / "metrics.jsonl").is_file():
                sys.exit(f"rank {self.rank}: step 1: not finite: loss")

    def _misbehave(self) -> None:
        time.sleep(self.does.get("pace", 0))
        at = {what for what, number in self.does.items() if number == self.step}
        while "waits" in at and not (self.trial / "go").exists():
            time.sleep(0.05)
        if "diverges" in at:
            sys.exit(f"step {self.step}: not finite: loss nan")
        if "memory" in at:
            sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
        if "broken" in at:
            sys.exit("a setting is wrong: mend it")
        if "killed" in at and len(starts(self.trial)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def _look(self, metrics: Path) -> None:
        value = None if self.does.get("nulls") == self.step else canary_knn(self.lr, self.step)
        row = {"step": self.step, "epoch": self.step / 10, "canary_knn": value, "step_s": 0.1}
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        folder = self.out / "checkpoints" / f"step_{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"step": self.step, "path": self.path}))
        (folder / "COMMITTED").touch()


if __name__ == "__main__":
    run = Run(settings(Path(sys.argv[2]), sys.argv[3:]))
    run.begin()
    run.follow() if run.rank else run.train()
