"""A run learns its task, keeps what validation chose, and is judged once; for every kind of task."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from essa_dist.data.batch import normalise
from essa_dist.data.labelled.transforms import prepare
from essa_dist.data.shards import open_packed
from essa_dist.errors import DivergedError, UsageError
from essa_dist.finetune.model import load_finetuned
from essa_dist.runfolder import best_checkpoint, committed_checkpoints, result_checkpoint
from tests.finetune.conftest import COLOURS, COUNTS, SIDE, Tuned

Tune = Callable[..., Tuned]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def predicted_again(run: Path, packed: str, rows: dict[str, Any]) -> torch.Tensor:
    """Probabilities of the test images by ``load_finetuned``, in the order of ``rows``."""
    model, images = load_finetuned(str(run)), open_packed(f"{packed}:test")
    place = {key: i for i, key in enumerate(images.keys)}
    pixels = [prepare(images.decode(place[str(key)]), None, SIDE, "whole")[0] for key in rows["keys"]]
    ready = normalise(torch.stack(pixels), model.backbone.mean, model.backbone.std)
    with torch.no_grad():
        return model.task.probabilities(model.logits(ready))


def test_a_run_learns_and_its_result_is_what_validation_chose(cells: str, tune: Tune) -> None:
    tuned = tune("run", cells, "duration=12", "validation.every=2")
    rows, result = metrics(tuned.run), tuned.result
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert result["test"]["values"]["balanced_accuracy"] > 0.9  # chance is 1/3
    validated = {row["step"]: row["val_balanced_accuracy"] for row in rows if "val_nll" in row}
    assert list(validated) == [2, 4, 6, 8, 10, 12]
    best = max(validated, key=lambda step: validated[step])  # the first of equals
    assert (result["best_step"], result["val"]["balanced_accuracy"]) == (best, validated[best])
    chosen = best_checkpoint(tuned.run)
    assert chosen == result_checkpoint(tuned.run) == load_finetuned(str(tuned.run)).checkpoint
    assert chosen is not None
    assert str(chosen) == result["checkpoint"]
    assert chosen.name == f"step_{best:08d}"
    assert chosen != committed_checkpoints(tuned.run)[-1], "the newest is another: choosing was tested"


def test_what_is_loaded_predicts_what_the_run_predicted(cells: str, tune: Tune) -> None:
    tuned = tune("run", cells)
    rows = tuned.rows()
    assert sorted(rows["keys"]) == sorted(open_packed(f"{cells}:test").keys)
    assert list(rows["classes"]) == sorted(COLOURS)
    # The adapter is merged: the same sums in another order.
    np.testing.assert_allclose(predicted_again(tuned.run, cells, rows), rows["probabilities"], atol=1e-5)
    file = json.loads((tuned.run / "evaluation" / "test.json").read_text())
    assert file["test"] == json.loads(json.dumps(tuned.result["test"]))
    assert file["classes"] == sorted(COLOURS)
    right = rows["probabilities"].argmax(1) == rows["targets"]
    assert file["test"]["values"]["accuracy"] == pytest.approx(right.mean())
    assert file["test"]["n"] == len(COLOURS) * COUNTS["test"]


KINDS = {
    "multiclass": ("cells", (), "balanced_accuracy"),
    "binary": ("pair", ("data.augment.policy=apla",), "auroc"),
    "multilabel": ("findings", ("mixing.label_smoothing=0.1", "head.pooling=cls+mean"), "auroc"),
    "ordinal": ("cells", ("task={kind: ordinal, order: [green, red, blue]}",), "quadratic_kappa"),
    "mixed": ("cells", ("mixing.mixup=0.8", "mixing.cutmix=1"), "balanced_accuracy"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_learnt_and_read_back(
    kind: str, tune: Tune, request: pytest.FixtureRequest
) -> None:
    packed, overrides, metric = KINDS[kind]
    given = request.getfixturevalue(packed)
    tuned = tune("run", given, "duration=4", "validation.every=2", "test.resamples=5", *overrides)
    assert (tuned.result["task"], tuned.result["target_metric"]) == (
        "multiclass" if kind == "mixed" else kind,
        metric,
    )
    assert all(math.isfinite(value) for value in tuned.result["test"]["values"].values())
    low, high = tuned.result["test"]["intervals"][metric]
    assert 0 <= low <= high <= 1
    rows = tuned.rows()
    np.testing.assert_allclose(predicted_again(tuned.run, given, rows), rows["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("decoder=linear", "data.evaluation=native"),
        ("decoder={kind: setr_pup, channels: 8}", "data.evaluation=whole"),
        ("decoder={kind: dpt, channels: 8}", "data.evaluation=native", "data.image_size=16"),
    ],
)
def test_segmentation_is_learnt_with_every_decoder_whole_and_by_windows(
    nuclei: str, tune: Tune, overrides: tuple[str, ...]
) -> None:
    tuned = tune("run", nuclei, "duration=8", "validation.every=4", "batch_size=3", *overrides)
    rows = metrics(tuned.run)
    assert tuned.result["task"] == "segmentation"
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(tuned.result["test"]["per_class"]) == {"ground", "cell"}
    assert 0 < tuned.result["test"]["values"]["dice"] <= 1
    model = load_finetuned(str(tuned.run))
    assert model.logits(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_the_head_alone_is_trained_without_adapter_and_before_it(cells: str, tune: Tune) -> None:
    def trunk(run: Path) -> dict[str, torch.Tensor]:
        newest = committed_checkpoints(run)[-1]
        return {
            n: t for n, t in load_file(newest / "student.safetensors").items() if n.startswith("backbone.")
        }

    frozen = tune("frozen", cells, "adapter=frozen")
    assert not trunk(frozen.run)
    assert frozen.result["trainable_parameters"] == 0
    assert metrics(frozen.run)[-1]["loss"] < metrics(frozen.run)[0]["loss"]
    warmed = tune("warmed", cells, "schedule.head_warmup=2", "duration=2", "checkpoint.every=1")
    later = tune("later", cells, "schedule.head_warmup=2", "duration=3", "checkpoint.every=1")
    model, start = load_finetuned(str(warmed.run)), load_finetuned(str(frozen.run))
    for (name, tensor), base in zip(
        model.backbone.vit.state_dict().items(), start.backbone.vit.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, base), name
    assert any(not torch.equal(t, trunk(later.run)[name]) for name, t in trunk(warmed.run).items())


def test_a_run_without_new_best_ends_early_and_stays_ended(cells: str, tune: Tune) -> None:
    words = ("duration=30", "validation.every=1", "validation.stop_after=2", "optim.lr=1e-30")
    tuned = tune("run", cells, *words)
    assert (tuned.result["step"], tuned.result["best_step"]) == (
        3,
        1,
    )  # 1 is the best, 2 and 3 are as good only
    assert tune("run", cells, *words, "resume=true").result["step"] == 3


def test_without_validation_the_last_checkpoint_and_without_test_images_no_score(
    make_set: Callable[..., str], tune: Tune
) -> None:
    train_only = make_set(train={"red": 4, "blue": 4})
    tuned = tune("run", train_only, "validation.every=null")
    assert tuned.result["best_step"] == 6
    assert not {"val", "test", "predictions"} & tuned.result.keys()
    assert not (tuned.run / "evaluation").exists()
    assert load_finetuned(str(tuned.run)).classes == ("blue", "red")
    with pytest.raises(UsageError, match="has no split val to choose the best checkpoint on"):
        tune("other", train_only)


def test_micro_batches_make_the_update_of_the_whole_batch(cells: str, tune: Tune) -> None:
    words = ("task={kind: multiclass, class_weights: balanced}", "data.fraction=0.7", "optim.clip=1")
    whole = [row["loss"] for row in metrics(tune("whole", cells, *words).run)]
    parts = [row["loss"] for row in metrics(tune("parts", cells, "accumulate=2", *words).run)]
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_a_loss_that_is_not_finite_names_its_samples(
    cells: str, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DivergedError, match=r"not finite: total nan .* lower optim.lr") as caught:
        tune("run", cells, "optim.lr=1e9", "data.augment.policy=none")
    (record,) = (Path(str(caught.value).split(" are in ")[1].split(";")[0])).glob("samples.json")
    assert set(open_packed(f"{cells}:train").keys) > set(json.loads(record.read_text())["ranks"]["0"]["keys"])


def test_a_task_of_another_version_is_one_line(cells: str, tune: Tune) -> None:
    tuned = tune("run", cells, "duration=1", "validation.every=null", "test.enabled=false")
    state = Path(tuned.result["checkpoint"]) / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"task": content["task"] | {"sharpness": 3}}))
    with pytest.raises(UsageError, match=r"this version can't read \(multiclass.sharpness: ") as caught:
        load_finetuned(str(tuned.run))
    assert "\n" not in str(caught.value)
