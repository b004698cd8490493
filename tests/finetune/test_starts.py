"""Supervised adaptation starts from anything, and what it started from is found again when the result is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers.drop import DropPath

from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError, WeightsError
from essa_dist.export.models import load_model
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.model import load_finetuned
from essa_dist.finetune.start import put_adapter, start_model
from essa_dist.settings import load
from tests.finetune.conftest import SIDE, Tuned
from tests.finetune.test_finetune import predicted_again

Tune = Callable[..., Tuned]
Adapted = Callable[[str], str]


def features(backbone: Backbone) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return backbone.eval()(torch.randn(2, 3, SIDE, SIDE)).cls


def started(*overrides: str) -> Backbone:
    """The model with the adapter in place, before the first update."""
    config = load(
        FinetuneConfig, None, ("out=unused", "backbone.name=test_vit", "backbone.weights=random", *overrides)
    )
    backbone = start_model(config)
    put_adapter(backbone, config)
    return backbone


@pytest.mark.parametrize("keep", ["false", "true"])
@pytest.mark.parametrize("adapter", ["apla", "lora", "vpt"])
def test_a_start_sees_what_the_run_before_it_saw(adapted: Adapted, adapter: str, keep: str) -> None:
    run = adapted(adapter)
    backbone = started(f"model={run}", f"keep_adapter={keep}", "adapter=bitfit")
    torch.testing.assert_close(features(backbone), features(load_model(run)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("below", "above"), [("lora", "apla"), ("vpt", "lora"), ("apla", "apla+lora")])
def test_a_kept_adapter_stays_as_it_is_under_the_trained_one(
    adapted: Adapted, cells: str, tune: Tune, below: str, above: str
) -> None:
    run = adapted(below)
    tuned = tune(
        "run",
        cells,
        f"model={run}",
        "keep_adapter=true",
        f"adapter={above}",
        "duration=2",
        "validation.every=2",
    )
    rows = tuned.rows()
    again = predicted_again(tuned.run, cells, rows).numpy()
    assert abs(again - rows["probabilities"]).max() < 1e-5
    trained = load_file(Path(tuned.result["checkpoint"]) / "student.safetensors")
    kept = {"lora": "lora_", "vpt": "prompt"}.get(below)
    assert any("lora_" in name for name in trained) == ("lora" in above)
    assert kept is None or not any(kept in name for name in trained if "lora" not in above)


@pytest.mark.parametrize("adapter", ["lora", "ssf"])
def test_an_adapter_that_a_kept_one_leaves_no_place_is_refused_with_the_way_out(
    adapted: Adapted, adapter: str
) -> None:
    words = f"adapter={adapter} does not go on top of the kept adapter of .*or keep_adapter=false"
    with pytest.raises(UsageError, match=words):
        started(f"model={adapted(adapter)}", "keep_adapter=true", f"adapter={adapter}")


def test_a_fine_tuned_run_is_a_start_too_and_must_stay_where_it_is(cells: str, tune: Tune) -> None:
    first = tune("first", cells, "duration=2", "validation.every=2")
    words = (f"model={first.run}", "duration=2", "validation.every=2", "adapter=lora")
    second = tune("second", cells, *words)
    rows = second.rows()
    assert abs(predicted_again(second.run, cells, rows).numpy() - rows["probabilities"]).max() < 1e-5
    moved = first.run.rename(first.run.with_name("moved"))
    with pytest.raises(UsageError, match=r"model=.*first is not there"):
        load_finetuned(str(second.run))
    tune("first", cells, "duration=1", "validation.every=1", "seed=5")  # another in its place
    with pytest.raises(WeightsError):
        load_finetuned(str(second.run))
    resumed = tune("second", cells, f"model={moved}", *words[1:], "resume=true")
    assert resumed.result["test"] == second.result["test"]


def test_stochastic_depth_and_recomputing_come_to_a_model_of_a_run(
    adapted: Adapted, cells: str, tune: Tune
) -> None:
    words = (f"model={adapted('apla')}", "backbone.drop_path=0.5")
    rates = [m.drop_prob for m in started(*words).vit.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.5)
    assert rates == sorted(rates)
    plain = tune("plain", cells, *words, "duration=2", "validation.every=2")
    saving = tune(
        "saving", cells, *words, "backbone.checkpoint_activations=true", "duration=2", "validation.every=2"
    )
    assert saving.result["loss"] == pytest.approx(plain.result["loss"], abs=1e-6)
    without = tune("without", cells, words[0], "duration=2", "validation.every=2")
    assert without.result["loss"] != pytest.approx(plain.result["loss"], abs=1e-6)


def test_a_run_that_trained_every_weight_and_masked_nothing_is_loaded(cells: str, tune: Tune) -> None:
    tuned = tune("run", cells, "adapter=full", "duration=2", "validation.every=2")
    rows = tuned.rows()
    assert abs(predicted_again(tuned.run, cells, rows).numpy() - rows["probabilities"]).max() < 1e-5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "backbone.name=vit_tiny_patch16_224",
            "backbone.name=vit_tiny_patch16_224, but model=.* has test_vit",
        ),
        ("backbone.name=dinov2_vits14", "backbone.name=dinov2_vits14, but"),
        ("backbone.in_chans=1", "backbone.in_chans=1, but model=.* has 3"),
        ("backbone.pos_embed=dinov2", "backbone.pos_embed=dinov2, but model=.* has timm"),
        ("backbone.weights=other.pth", "backbone.weights=other.pth, but model=.* started from random"),
    ],
)
def test_settings_of_another_trunk_than_the_models_are_refused(
    adapted: Adapted, given: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        started(f"model={adapted('apla')}", given)


@pytest.mark.parametrize("given", ["backbone.name=dinov2_vitl14", "backbone.pos_embed=timm"])
def test_defaults_and_what_the_model_is_are_no_contradiction(adapted: Adapted, given: str) -> None:
    assert started(f"model={adapted('apla')}", given).name == "test_vit"
