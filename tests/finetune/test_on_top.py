"""An adapter on top of every other: what the second step does with what the first one left in the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from essa_dist import export, predict
from essa_dist.adapters import ADAPTERS
from essa_dist.errors import Preempted, UsageError
from essa_dist.export.models import load_model
from essa_dist.finetune.model import load_finetuned
from tests.finetune.conftest import Tuned
from tests.finetune.test_finetune import predicted_again
from tests.finetune.test_starts import Adapted, features, started
from tests.finetune.test_stops import ended_by, signal_in_step

Tune = Callable[..., Tuned]
STAYING = [name for name, (_, adapter) in ADAPTERS.items() if not adapter.merges]
SHORT = ("duration=2", "validation.every=2", "optim.lr=1e-3")
"""A vpt that starts from random prompts needs ``tokens`` to be few, that a step moves it little."""


def trained(tuned: Tuned) -> dict[str, torch.Tensor]:
    tensors = load_file(Path(tuned.result["checkpoint"]) / "student.safetensors")
    return {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("below", ADAPTERS)
def test_every_adapter_goes_on_top_of_a_run_with_any_other(adapted: Adapted, below: str) -> None:
    run = adapted(below)
    before = features(load_model(run))
    for above, (_, adapter) in ADAPTERS.items():
        backbone = started(f"model={run}", f"adapter={above}")
        if adapter.starts_exact or above == below:  # VPT's new prompts have a share in every softmax
            torch.testing.assert_close(features(backbone), before, atol=1e-5, rtol=0, msg=above)
        assert any(p.requires_grad for p in backbone.parameters()) == (above != "frozen")


@pytest.mark.parametrize("kind", STAYING)
def test_modules_that_cannot_be_merged_are_trained_on_by_the_same_adapter(
    adapted: Adapted, cells: str, tune: Tune, tmp_path: Path, kind: str
) -> None:
    run = adapted(kind)
    tuned = tune("run", cells, f"model={run}", f"adapter={kind}", *SHORT)
    first = {name: p for name, p in load_model(run).named_parameters() if f".{kinds_module(kind)}." in name}
    assert trained(tuned).keys() == first.keys()
    moved = [name for name, tensor in trained(tuned).items() if not torch.equal(tensor, first[name])]
    assert moved
    assert all((trained(tuned)[name] - first[name]).abs().max() < 0.01 for name in moved)
    rows = tuned.rows()
    assert abs(predicted_again(tuned.run, cells, rows).numpy() - rows["probabilities"]).max() < 1e-5
    assert predict(str(tuned.run), images=f"{cells}:test", out=str(tmp_path / "said"))["images"] == 12
    with pytest.raises(UsageError, match=f"adapter {kind} can't be merged .* format=onnx or essa"):
        export(str(tuned.run), out=str(tmp_path / "plain"))
    export(str(tuned.run), out=str(tmp_path / "own"), format="essa", branch="student")
    torch.testing.assert_close(
        features(load_model(str(tmp_path / "own"))), features(load_finetuned(str(tuned.run)).backbone)
    )


def kinds_module(kind: str) -> str:
    return {"vpt": "prompts", "adaptformer": "bottleneck"}[kind]


def test_tokens_that_are_trained_on_go_on_after_a_signal(
    adapted: Adapted, cells: str, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"model={adapted('vpt')}", "adapter=vpt", "duration=4", "validation.every=4")
    whole = tune("whole", cells, *words)
    with ended_by(monkeypatch, Preempted, "stopped by") as patched:
        signal_in_step(patched, 2)
        tune("broken", cells, *words)
    resumed = tune("broken", cells, *words, "resume=true")
    assert all(torch.equal(tensor, trained(resumed)[name]) for name, tensor in trained(whole).items())
    assert resumed.result["test"] == whole.result["test"]


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("vpt", "adapter={kind: vpt, tokens: 3}"),
        ("vpt", "adapter={kind: vpt, deep: false}"),
        ("adaptformer", "adapter={kind: adaptformer, dim: 3}"),
        ("adaptformer", "adapter={kind: adaptformer, scale: learned}"),
    ],
)
def test_modules_of_another_size_are_not_trained_on(adapted: Adapted, below: str, above: str) -> None:
    words = {
        "vpt": r"adapter\.tokens=10 adapter\.deep=true",
        "adaptformer": r"adapter\.dim=64 adapter\.scale=0\.1",
    }
    with pytest.raises(UsageError, match=words[below]):
        started(f"model={adapted(below)}", above)


@pytest.mark.parametrize(
    ("below", "above"), [("vpt", "bitfit"), ("vpt", "adaptformer"), ("vpt+apla", "apla")]
)
def test_what_cannot_be_merged_stays_under_another_adapter_and_in_its_export(
    adapted: Adapted, cells: str, tune: Tune, tmp_path: Path, below: str, above: str
) -> None:
    tuned = tune("run", cells, f"model={adapted(below)}", f"adapter={above}", *SHORT)
    expected = features(load_finetuned(str(tuned.run)).backbone)
    with pytest.raises(UsageError, match=r"adapter vpt.* can't be merged"):
        export(str(tuned.run), out=str(tmp_path / "plain"))
    export(str(tuned.run), out=str(tmp_path / "own"), format="essa", branch="student")
    torch.testing.assert_close(features(load_model(str(tmp_path / "own"))), expected)


@pytest.mark.parametrize(("below", "above"), [("lora", "apla"), ("apla", "apla+lora")])
def test_a_kept_adapter_is_merged_with_the_one_on_top_when_the_result_is_loaded(
    adapted: Adapted, cells: str, tune: Tune, tmp_path: Path, below: str, above: str
) -> None:
    tuned = tune("run", cells, f"model={adapted(below)}", "keep_adapter=true", f"adapter={above}", *SHORT)
    rows = tuned.rows()
    assert abs(predicted_again(tuned.run, cells, rows).numpy() - rows["probabilities"]).max() < 1e-5
    export(str(tuned.run), out=str(tmp_path / "plain"), branch="student")
    torch.testing.assert_close(
        features(load_model(str(tmp_path / "plain"))), features(load_finetuned(str(tuned.run)).backbone)
    )


@pytest.mark.parametrize("kind", STAYING)
def test_what_is_kept_is_not_trained_on(adapted: Adapted, kind: str) -> None:
    with pytest.raises(UsageError, match=r"stays frozen.*keep_adapter=false"):
        started(f"model={adapted(kind)}", "keep_adapter=true", f"adapter={kind}")
