"""However a run is stopped, it goes on to the same result, bit for bit."""

import errno
import importlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from essa_dist.engine.train import Run
from essa_dist.errors import Preempted, UsageError
from essa_dist.finetune import judging
from essa_dist.runfolder import committed_checkpoints
from tests.finetune.conftest import Tuned

Tune = Callable[..., Tuned]
verb = importlib.import_module("essa_dist.finetune.finetune")  # the package's attribute is the function
# Dropout of depth, mixing and augmentation: all that draws random numbers.
WORDS = ("data.augment.policy=medpeft_adamw", "mixing.mixup=0.5", "backbone.drop_path=0.3", "optim.clip=1")
SGD = ("optim.kind=sgd", "optim.momentum=0.9")


def signal_during(monkeypatch: pytest.MonkeyPatch, *predictions: int, number: int = signal.SIGTERM) -> None:
    """A signal at the first batch of the n-th time that a set is predicted, counted from 1."""
    real, calls = verb.evaluation_batches, iter(range(1, 99))

    def batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        number_of_call = next(calls)
        for batch in real(*args, **kwargs):
            if number_of_call in predictions:
                signal.raise_signal(number)
            yield batch

    monkeypatch.setattr(verb, "evaluation_batches", batches)


def signal_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = Run._one_step

    def one_step(self: Run, batch: Any) -> None:
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        real(self, batch)

    monkeypatch.setattr(Run, "_one_step", one_step)


@contextmanager
def ended_by(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], words: str
) -> Iterator[pytest.MonkeyPatch]:
    """What is patched for a run that ends with this error."""
    with monkeypatch.context() as patched, pytest.raises(error, match=words):
        yield patched


def assert_same_end(one: Path, other: Path) -> None:
    for name in ("student", "optimizer", "buffers"):
        a, b = (load_file(committed_checkpoints(run)[-1] / f"{name}.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(t, b[key]) for key, t in a.items()), name
    files = [json.loads((run / "evaluation" / "test.json").read_text()) for run in (one, other)]
    assert files[0] == files[1]
    a, b = (np.load(run / "evaluation" / "test.npz") for run in (one, other))
    assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize("optimizer", [(), SGD], ids=["adamw", "sgd"])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(
    cells: str, tune: Tune, optimizer: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, *optimizer)
    whole = tune("whole", cells, *words)
    resumed = (*words, "resume=true")
    with ended_by(monkeypatch, Preempted, "after step 2 of 6; go on with resume") as patched:
        signal_in_step(patched, 2)
        tune("run", cells, *resumed)
    with ended_by(monkeypatch, Preempted, "after step 3 of 6") as patched:
        signal_during(patched, 1)  # the validation after step 3
        tune("run", cells, *resumed)
    with ended_by(monkeypatch, Preempted, "after step 3 of 6, where it had") as patched:
        signal_during(patched, 1, number=signal.SIGINT)  # once more, while it is made up for
        tune("run", cells, *resumed)
    with ended_by(monkeypatch, Preempted, "during the prediction of the test images") as patched:
        signal_during(patched, 3)
        tune("run", cells, *resumed)
    tuned = tune("run", cells, *resumed)
    assert_same_end(tuned.run, whole.run)
    assert tuned.result["val"] == whole.result["val"]


def test_a_run_stopped_during_its_last_validation_is_not_done(
    cells: str, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("test.enabled=false", "validation.every=6", "resume=true")
    with ended_by(monkeypatch, Preempted, "during the last validation") as patched:
        signal_during(patched, 1)
        tune("run", cells, *words)
    assert tune("run", cells, *words).result["val"]["balanced_accuracy"] > 0


def test_a_full_disk_at_the_end_leaves_no_half_file_and_the_next_start_writes_it(
    cells: str, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **rows: Any) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    with ended_by(monkeypatch, OSError, "No space left") as patched:
        patched.setattr(judging.np, "savez_compressed", full)
        tune("run", cells)
    assert not list((tmp_path / "run" / "evaluation").iterdir())
    assert_same_end(tune("run", cells, "resume=true").run, tune("whole", cells).run)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("task.target_metric=accuracy",), "task.target_metric was None, is accuracy"),
        (("head.pooling=mean",), "head.pooling was cls, is mean"),
        (("adapter=lora",), "adapter.kind was apla, is lora"),
        (("data.shots=2",), "data.shots was None, is 2"),
        ((), "data"),
    ],
)
def test_resume_refuses_to_learn_something_else(
    cells: str, pair: str, tune: Tune, changed: tuple[str, ...], words: str
) -> None:
    short = ("duration=1", "validation.every=null", "test.enabled=false")
    tune("run", cells, *short)
    with pytest.raises(UsageError, match=words):
        tune("run", cells if changed else pair, *short, *changed, "resume=true")
