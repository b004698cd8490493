"""A run keeps its promises: it trains what it says, stops before harm, and leaves a folder that explains itself."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from essa_dist import adapt, pack
from essa_dist.errors import DivergedError, UsageError, WeightsError
from essa_dist.export.models import base_model, load_model

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run: Path, step: int, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_run_leaves_config_metrics_events_and_the_newest_checkpoints(recipe: list[str], run: Path) -> None:
    result = adapt(None, *recipe)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_00000004", "step_00000006"}
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "dino_global", "dino_local", "ibot", "koleo", "grad_norm", "rankme", "lr"} <= rows(run)[
        0
    ].keys()
    assert list(run.glob("events.*"))
    assert (result["step"], result["out"]) == (6, str(run))
    assert result["trainable_parameters"] == sum(
        t.numel() for name, t in tensors(run, 6).items() if name.startswith("backbone.")
    )
    adapt(str(run / "config.yaml"), "overwrite=true", f"out={run}2")  # the resolved config is a recipe


def test_without_an_interval_the_last_step_alone_is_saved(recipe: list[str], run: Path) -> None:
    adapt(None, *recipe, "duration=3", "checkpoint.every=0", "checkpoint.keep=9")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000003"]


def test_checkpoints_hold_no_frozen_weight(recipe: list[str], run: Path) -> None:
    result = adapt(None, *recipe)
    for branch in ("student", "teacher"):
        trunk = [name for name in tensors(run, 6, branch) if name.startswith("backbone.")]
        assert trunk
        assert all(".attn.proj." in name for name in trunk)
    written = sum(f.stat().st_size for f in (run / "checkpoints" / "step_00000006").iterdir())
    assert written == result["checkpoint_bytes"]
    numbers = result["trainable_parameters"] + result["head_parameters"]
    assert written < 4.5 * 4 * numbers + 50_000  # student, teacher, two moments; the rest is small


def test_the_teacher_is_what_load_model_returns_and_the_base_is_untouched(
    recipe: list[str], run: Path
) -> None:
    torch.manual_seed(5)
    adapt(None, *recipe, "backbone.name=vit_tiny_patch16_224", "backbone.weights=auto", "duration=2")
    images = torch.randn(2, 3, 48, 48)
    base, teacher, student = base_model(run), load_model(str(run)), load_model(f"student:{run}")
    assert not torch.allclose(teacher(images).cls, student(images).cls)
    saved = tensors(run, 2, "teacher")
    for (name, p), (_, b) in zip(teacher.named_parameters(), base.named_parameters(), strict=True):
        assert torch.equal(p, saved.get(f"backbone.{name}", b)), name


def test_the_seed_decides_everything(recipe: list[str], run: Path) -> None:
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # the global state must not matter
        adapt(None, *recipe, f"seed={seed}", f"out={run}{i}")
    same, twin, other = (tensors(Path(f"{run}{i}"), 6) for i in range(3))
    assert all(torch.equal(same[name], twin[name]) for name in same)
    assert not all(torch.equal(same[name], other[name]) for name in same)


def test_head_warmup_moves_only_the_heads(recipe: list[str], run: Path) -> None:
    adapt(None, *recipe, "schedule.head_warmup=4", "schedule.freeze_last_layer=2", "checkpoint.keep=9")
    two, four, six = (tensors(run, step) for step in (2, 4, 6))
    assert all(torch.equal(two[n], four[n]) == n.startswith("backbone.") for n in two if n.endswith("weight"))
    assert not any(
        torch.equal(four[n], six[n]) for n in four if n.startswith("backbone.") and n.endswith("weight")
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_trained_tensors_in_fp32_and_follows_fp32(
    recipe: list[str], run: Path, precision: str
) -> None:
    adapt(None, *recipe, f"precision={precision}", "optim.lr=1e-3")
    half = rows(run)
    adapt(None, *recipe, "precision=fp32", "optim.lr=1e-3", f"out={run}32")
    exact = rows(Path(f"{run}32"))
    assert {t.dtype for t in tensors(run, 6).values()} == {torch.float32}
    for name in (
        "dino_global",
        "dino_local",
        "ibot",
    ):  # KoLeo, a logarithm of small distances, is not as close
        assert half[0][name] == pytest.approx(exact[0][name], rel=0.02)


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_a_run_in_micro_batches_is_the_run_in_whole_batches(
    recipe: list[str], run: Path, centering: str
) -> None:
    gentle = [f"objective.centering={centering}", "optim.lr=1e-4", "checkpoint.every=6"]
    adapt(None, *recipe, *gentle)
    adapt(None, *recipe, *gentle, "accumulate=4", f"out={run}4")
    for name in ("loss", "ibot", "koleo", "grad_norm"):
        once, four = ([row[name] for row in rows(folder)] for folder in (run, Path(f"{run}4")))
        assert four == pytest.approx(once, rel=1e-3)
    once, four = tensors(run, 6, "buffers"), tensors(Path(f"{run}4"), 6, "buffers")
    for name, tensor in once.items():
        torch.testing.assert_close(four[name], tensor, rtol=1e-3, atol=1e-6)


def test_not_finite_stops_before_the_update_and_names_the_samples(recipe: list[str], run: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"step \d: not finite: .*\(4 samples of rank 0\); nothing was updated"
    ) as error:
        adapt(None, *recipe, "optim.lr=1e30", "optim.clip=1e9", "checkpoint.every=1", "checkpoint.keep=9")
    folder = next((run / "diverged").iterdir())
    record = json.loads((folder / "samples.json").read_text())
    assert len(record["ranks"]["0"]["keys"]) == 4
    kept, last = load_file(folder / "student.safetensors"), tensors(run, record["step"] - 1)
    assert all(torch.equal(kept[name], last[name]) for name in last)
    assert str(folder) in str(error.value)


def test_collapse_is_warned_of_with_its_number(
    recipe: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(8):
        Image.new("RGB", (48, 48), (100, 100, 100)).save(tmp_path / "flat" / f"{i}.png")
    pack(str(tmp_path / "flat"), out=str(tmp_path / "same"), blank=0)
    with caplog.at_level(logging.WARNING, logger="essa_dist"):
        adapt(None, *recipe, f"data.train={tmp_path / 'same'}", "guard.patience=1", "guard.rankme_floor=0.3")
    assert any("effective rank of the features is 1." in message for message in caplog.messages)


def test_an_existing_out_is_refused_and_a_foreign_folder_is_never_deleted(
    recipe: list[str], run: Path
) -> None:
    run.mkdir()
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists: choose another, or say resume=true or overwrite=true"):
        adapt(None, *recipe)
    with pytest.raises(UsageError, match="not a run folder"):
        adapt(None, *recipe, "overwrite=true")
    with pytest.raises(UsageError, match="not a run folder"):
        adapt(None, *recipe, "resume=true")
    assert (run / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("device=cuda", "no GPU that torch can use", marks=NO_GPU),
        ("batch_size=1", "less than 2 images for KoLeo"),
        ("duration=0", "duration=0 trains nothing"),
        ("accumulate=3", "not a multiple of accumulate=3"),
        ("data.crops.global_size=50", "global_size 50 is no multiple of the patch size 16"),
        ("adapter={kind: apla, rank: 4096}", r"must be in 1\.\.64"),
        ("data.train=nowhere", "nowhere"),
        ("data.train=''", "data.train is not set"),
        ("backbone.name=resnet50", "must be a timm VisionTransformer|not a vision transformer"),
        ("backbone.name=vit_smal_patch16", "not a timm model"),
        ("backbone.weights=nowhere.safetensors", "nowhere.safetensors does not exist"),
    ],
)
def test_the_impossible_is_refused_in_one_line_and_leaves_no_folder(
    recipe: list[str], run: Path, override: str, message: str
) -> None:
    with pytest.raises(Exception, match=message) as error:
        adapt(None, *recipe, override)
    assert "\n" not in str(error.value)
    assert not run.exists()


def test_a_run_over_another_trunk_is_not_loaded(recipe: list[str], run: Path) -> None:
    adapt(None, *recipe)
    load_model(str(run))  # random weights follow the run's seed
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(WeightsError, match="trained on other pretrained weights"):
        load_model(str(run))


@pytest.mark.parametrize(("dino", "ibot"), [(4, 0), (0, 4), (4, 4)])
def test_each_head_standardizes_its_input_if_it_asks_for_it(
    recipe: list[str], run: Path, dino: int, ibot: int
) -> None:
    sizes = "prototypes: 32, hidden: 16, bottleneck: 8, standardize_on"
    adapt(
        None,
        *recipe,
        f"objective.head={{{sizes}: {dino}}}",
        f"objective.ibot_head={{{sizes}: {ibot}}}",
    )
    buffers = tensors(run, 6, "buffers")
    for name, asked in (("dino_head", dino), ("ibot_head", ibot)):
        assert bool(buffers[f"{name}.input_mean"].any()) == bool(asked), name
