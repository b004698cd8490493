"""``essa bench step``: the real step, on noise, phase by phase; and nothing is left behind."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from essa_dist.bench.step import BenchStepConfig, bench_step, largest, tflop_per_image
from essa_dist.bench.subject import Subject
from essa_dist.errors import UsageError
from essa_dist.planning.plan import read_words
from tests.distributed.launching import run as run_command
from tests.distributed.launching import torchrun

PHASES = {"student forward", "teacher forward", "backward", "update", "EMA"}


@pytest.fixture(autouse=True)
def _small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essa_dist.bench.peaks.SIDES", {"cpu": (64,)})
    monkeypatch.setattr("essa_dist.bench.peaks.COPIED", {"cpu": 2**20})


def test_a_step_is_told_by_phase_with_memory_and_share_of_the_peak(
    small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench_step(BenchStepConfig(run=small, warmup=1, steps=4, sizes=True, out="step.json"))
    assert [file.name for file in tmp_path.iterdir()] == ["step.json"]
    assert json.loads(Path("step.json").read_text())["img_per_s"] == result["img_per_s"]
    assert set(result["phases_s"]) == PHASES
    assert len(result["steps_s"]) == 4
    assert result["img_per_s"] == pytest.approx(4 / result["step_s"]["median"])
    assert sum(result["phases_s"].values()) == pytest.approx(result["step_s"]["median"], rel=0.6)
    assert result["mfu"] == pytest.approx(result["tflops"] / result["peaks"]["matmul_tflops"])
    assert result["tflops"] == pytest.approx(result["img_per_s"] * result["tflop_per_image"])
    assert 0 < result["trained_share"] < 0.2
    assert result["adapter_bytes"] < result["checkpoint_bytes"]
    assert result["peak_gib"] > 0.1


def test_the_step_is_that_of_a_run_it_moves_student_and_teacher(small: tuple[str, ...]) -> None:
    subject = Subject(read_words([*small, "adapter=bitfit"]))
    branches = subject.objective.branches
    before = {name: p.detach().clone() for name, p in branches.students.items()}
    teachers = {name: p.detach().clone() for name, p in branches.teachers.items()}
    for batch in islice(subject.batches(), 2):
        subject.run(batch)
    assert any(not torch.equal(before[name], p) for name, p in branches.students.items())
    assert any(not torch.equal(teachers[name], p) for name, p in branches.teachers.items())
    assert len(subject.clock.read()) == 2


def test_batches_have_the_shapes_of_the_run_and_masks_that_change(small: tuple[str, ...]) -> None:
    subject = Subject(
        read_words([*small, "backbone.in_chans=1", "backbone.mean=[0.5]", "backbone.std=[0.2]"])
    )
    one, two = islice(subject.batches(6), 2)
    assert one.global_crops.shape == (2, 6, 1, 32, 32)
    assert one.local_crops.shape == (3, 6, 1, 16, 16)
    assert one.masks.shape == (2, 6, 4)
    assert one.masks.dtype == torch.bool
    assert one.global_crops is two.global_crops
    assert one.masks is not two.masks


def test_micro_batches_add_up_to_the_same_phases(small: tuple[str, ...]) -> None:
    config = BenchStepConfig(run=(*small, "accumulate=2"), warmup=1, steps=1, peaks=False, count=False)
    result = bench_step(config)
    assert set(result["phases_s"]) == PHASES
    assert result["accumulate"] == 2
    assert "mfu" not in result


def test_arithmetic_is_what_is_computed_more_is_trained_by_full(small: tuple[str, ...]) -> None:
    counts = [
        tflop_per_image(read_words([*small, f"adapter={kind}"]), gpu=False) for kind in ("full", "apla")
    ]
    assert 1.1 < counts[0] / counts[1] < 2


def test_the_largest_batch_is_found_to_an_eighth() -> None:
    assert largest(lambda size: size <= 37, 4) in range(33, 38)
    assert largest(lambda size: size <= 37, 64) in range(33, 38)
    assert largest(lambda size: False, 8) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"largest": True}, "largest=true"),
        ({"out": "no/such/step.json"}, "its folder is not there"),
        ({"run": ("data.crops.global_size=33",)}, "not a multiple of the patch size"),
        ({"run": ("adapter=aplaa",)}, "apla"),
        ({"run": ("a.yaml", "b.yaml")}, "one word too many"),
        ({"run": ("device=cuda",)}, "there is no GPU"),
    ],
)
def test_what_can_not_be_measured_is_said_in_a_line(
    small: tuple[str, ...], words: dict[str, object], said: str
) -> None:
    if torch.cuda.is_available() and said in ("largest=true", "there is no GPU"):
        pytest.skip("there is a GPU")
    run = (*small, *words.pop("run", ()))  # type: ignore[misc]
    with pytest.raises(UsageError, match=said) as caught:
        bench_step(BenchStepConfig(run=run, peaks=False, count=False, warmup=1, steps=1, **words))
    assert "\n" not in str(caught.value)


def test_under_a_launcher_all_ranks_measure_and_the_first_tells(small: tuple[str, ...]) -> None:
    words = ["bench", "step", *small, "warmup=1", "steps=1", "peaks=false", "sizes=true", "--json"]
    ended = run_command([*torchrun(2), "-m", "essa_dist", *words])
    assert ended.exit_code == 0, ended.stderr[-2000:]
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    result = json.loads(line)
    assert (result["strategy"], result["processes"], result["batch_size"]) == ("ddp", 2, 4)
    assert result["tflop_per_image"] > 0
