"""The suite's promises: every combination once, finished work kept, a table whose numbers are the protocols' own."""

import csv
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.errors import UsageError
from essa_dist.evaluation.evaluate import EvaluateConfig, evaluate
from essa_dist.evaluation.suite import SuiteConfig, run_suite
from essa_dist.evaluation.suite.cells import cells
from essa_dist.evaluation.suite.store import Store
from essa_dist.settings import load

BLOOD = {"bank": "assets/blood_cells:test", "test": "assets/blood_cells:train"}


class Counted:
    """Small untrained models ``m0``, ``m1``, ..., whose features are made up: the higher the number the clearer."""

    def __init__(self) -> None:
        self.extracted: list[str] = []

    def load(self, ref: str) -> Backbone:
        config = BackboneConfig(name="vit_tiny_patch16_224", weights="random")
        backbone = build_backbone(config, seed=int(ref[-1])).eval()
        backbone.weights_source = ref
        return backbone

    def features_of(self, backbone: Backbone, images: Any, *rest: Any) -> torch.Tensor:
        self.extracted.append(images.split)
        random = torch.Generator().manual_seed(len(images))
        clear = 1.2 + int(backbone.weights_source[-1])
        labels = torch.from_numpy(images.labels)
        return clear * torch.eye(8, 10)[labels] + torch.randn(len(images), 10, generator=random)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted()
    module = import_module("essa_dist.evaluation.suite.features")
    monkeypatch.setattr(module, "load_model", found.load)
    monkeypatch.setattr(module, "features_of", found.features_of)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., SuiteConfig]:
    def make(**settings: Any) -> SuiteConfig:
        common = {
            "models": {"one": "m0", "two": "m1"},
            "data": {"blood": BLOOD},
            "out": str(tmp_path / "out"),
        }
        small = {"steps": 20, "draws": 2, "shots": "3", "k": "10,20", "resamples": 100, "image_size": 32}
        return SuiteConfig(**common | small | settings)

    return make


def rows(table: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in table["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_every_combination_is_a_cell_and_what_needs_no_seed_is_done_once(
    config: Callable[..., SuiteConfig],
) -> None:
    found = list(
        cells(
            config(
                protocols="knn,linear", seeds="0,1,2", fractions="1,0.5", models={"a": "m", "b": "m{seed}"}
            )
        )
    )
    assert len(found) == len(set(found))
    count = {
        (model, protocol, part): 0 for model in "ab" for protocol in ("knn", "linear") for part in (1, 0.5)
    }
    for cell in found:
        count[cell.model, cell.protocol, cell.fraction] += 1
    assert count == {key: 1 if key == ("a", "knn", 1) else 3 for key in count}


def test_features_are_extracted_once_and_finished_cells_are_not_repeated(
    counted: Counted, config: Callable[..., SuiteConfig]
) -> None:
    few = run_suite(config(protocols="knn", models={"one": "m0"}))
    assert (few["cells"], few["new_cells"], counted.extracted) == (1, 1, ["test", "train"])
    more = run_suite(config(protocols="knn,linear_sgd,retrieval", seeds="0,1"))
    assert counted.extracted == ["test", "train"] * 2  # the second model's
    assert (more["cells"], more["new_cells"]) == (8, 7)
    again = run_suite(config(protocols="knn,linear_sgd,retrieval", seeds="0,1"))
    assert len(counted.extracted) == 4
    assert again["new_cells"] == 0
    assert again["rows"] == more["rows"]
    other = run_suite(config(protocols="knn,linear_sgd,retrieval", seeds="0,1", k="15"))
    assert other["new_cells"] == 2  # k-NN of both models: k is no matter to the others
    assert len(counted.extracted) == 4


def test_another_model_under_the_same_name_is_another_model(
    counted: Counted, config: Callable[..., SuiteConfig]
) -> None:
    first = run_suite(config(protocols="knn", models={"one": "m0"}))
    second = run_suite(config(protocols="knn", models={"one": "m1"}))
    assert second["new_cells"] == 1
    assert len(counted.extracted) == 4
    assert first["rows"] != second["rows"]


@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_what_was_written_by_halves_is_made_again(tmp_path: Path, harm: str, suffix: str) -> None:
    store, key = Store(tmp_path / "kept"), {"a": 1, "b": [2, None]}
    store.write("v1.5 of/me", key, {"x": torch.arange(1000.0)}, {"n": 3})
    tensors, facts = store.read("v1.5 of/me", key) or ({}, {})
    assert torch.equal(tensors["x"], torch.arange(1000.0))
    assert facts["n"] == 3
    assert store.read("v1.5 of/me", {**key, "a": 2}) is None
    (file,) = (tmp_path / "kept").glob(f"*{suffix}")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 40 if harm == "cut" else 0])
    assert store.read("v1.5 of/me", key) is None


def test_the_table_holds_what_evaluate_finds_with_spread_interval_and_baseline(
    counted: Counted, config: Callable[..., SuiteConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run_suite(config(protocols="knn,linear_sgd", seeds="0,1,2"))
    monkeypatch.setattr(import_module("essa_dist.evaluation.evaluate"), "load_model", counted.load)
    monkeypatch.setattr(import_module("essa_dist.evaluation.probe"), "features_of", counted.features_of)

    def alone(protocol: str, model: str, seed: int) -> float:
        asked = {
            "protocol": protocol,
            "model": model,
            **BLOOD,
            "image_size": 32,
            "k": 10,
            "steps": 20,
            "seed": seed,
        }
        return float(evaluate(EvaluateConfig(**asked))["balanced_accuracy"])

    (knn,) = rows(table, protocol="knn", model="two", quoted=True)
    assert (knn["setting"], knn["metric"]) == ("k=10, T=0.07", "balanced_accuracy")
    assert knn["value"] == pytest.approx(alone("knn", "m1", 0))
    assert knn["std"] is None
    assert knn["n_seeds"] == 1
    assert knn["low"] < knn["value"] < knn["high"]
    assert knn["difference"] == pytest.approx(alone("knn", "m1", 0) - alone("knn", "m0", 0))
    assert knn["difference_low"] < knn["difference"] < knn["difference_high"]
    assert 0 < knn["p"] <= 1
    (sgd,) = rows(table, protocol="linear_sgd", model="one", quoted=True)
    each = [alone("linear_sgd", "m0", seed) for seed in (0, 1, 2)]
    assert (sgd["value"], sgd["std"]) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each, ddof=1)))
    assert sgd["difference"] is sgd["p"] is None  # it is the baseline
    (other,) = rows(table, protocol="linear_sgd", model="two", quoted=True)
    assert 0 <= other["p_seeds"] <= 1
    assert {row["setting"] for row in rows(table, protocol="knn")} == {"k=10, T=0.07", "k=20, T=0.07"}


def test_a_model_beside_itself_differs_by_nothing(
    counted: Counted, config: Callable[..., SuiteConfig]
) -> None:
    table = run_suite(
        config(protocols="knn,fewshot,retrieval", models={"one": "m0", "same": "m0"}, baseline="same")
    )
    assert table["baseline"] == "same"
    for row in rows(table, model="one"):
        assert (row["difference"], row["p"]) == (0, 1)


def test_the_seed_in_a_models_name_is_filled_in(counted: Counted, config: Callable[..., SuiteConfig]) -> None:
    table = run_suite(config(protocols="knn", seeds="0,1", models={"base": "m0", "runs": "m{seed}"}))
    (row,) = rows(table, model="runs", quoted=True)
    (base,) = rows(table, model="base", quoted=True)
    first, second = (
        run_suite(config(protocols="knn", models={"x": ref}))["rows"][0]["value"] for ref in ("m0", "m1")
    )
    assert first == base["value"] != second
    assert row["value"] == pytest.approx((first + second) / 2)
    assert row["n_seeds"] == 2


def test_a_fraction_of_the_labels_learns_from_that_share_by_seed(
    counted: Counted, config: Callable[..., SuiteConfig]
) -> None:
    table = run_suite(config(protocols="knn", models={"one": "m0"}, fractions="1,0.25", seeds="0,1"))
    whole, part = (rows(table, fraction=f, quoted=True)[0] for f in (1, 0.25))
    assert (whole["n_bank"], part["n_bank"]) == (800, 200)
    assert part["n_seeds"] == 2
    assert part["std"] > 0
    assert part["value"] < whole["value"]


def test_grades_add_kappa_which_can_be_what_is_quoted(
    counted: Counted, config: Callable[..., SuiteConfig]
) -> None:
    data = {"blood": {**BLOOD, "ordered": True, "metric": "quadratic_kappa"}}
    table = run_suite(config(protocols="knn,retrieval", data=data))
    assert {row["metric"] for row in rows(table, quoted=True)} == {"quadratic_kappa", "map"}
    assert rows(table, metric="auroc")[0]["value"] > 0.5


def test_a_metric_that_nothing_measures_is_told(
    counted: Counted, config: Callable[..., SuiteConfig], caplog: pytest.LogCaptureFixture
) -> None:
    table = run_suite(config(protocols="knn", data={"blood": {**BLOOD, "metric": "auruc"}}))
    assert (
        "data.blood.metric=auruc is measured by none of the protocols; they measure accuracy" in caplog.text
    )
    assert {row["metric"] for row in rows(table, quoted=True)} == {"balanced_accuracy"}
    with pytest.raises(ValidationError, match="more is better"):
        config(data={"blood": {**BLOOD, "metric": "ece"}})


def test_files_hold_the_table(counted: Counted, config: Callable[..., SuiteConfig], tmp_path: Path) -> None:
    table = run_suite(config(protocols="knn"))
    out = tmp_path / "out"
    assert json.loads((out / "table.json").read_text())["rows"] == table["rows"]
    lines = list(csv.DictReader((out / "table.csv").open()))
    assert [float(line["value"]) for line in lines] == [row["value"] for row in table["rows"]]
    text = (out / "table.md").read_text()
    assert text.startswith("| evaluation | metric | one | two |")
    (row,) = rows(table, model="two", quoted=True)
    assert f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "cells",
        "features",
        "table.csv",
        "table.json",
        "table.md",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": "900"}, r"data.blood: k=900 is outside 1\.\.800"),
        ({"fractions": "0.01"}, r"data.blood: k=20 is outside 1\.\.8 "),
        (
            {"data": {"blood": {"bank": "assets/nothing", "test": "assets/nothing"}}},
            "data.blood: no such folder",
        ),
        ({"image_size": 33}, "use 32 or 48"),
        ({"out": "README.md"}, "can't be made a folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_extracted(
    counted: Counted, config: Callable[..., SuiteConfig], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_suite(config(**wrong))
    assert counted.extracted == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"baseline": "three"},
        {"protocols": "knn,svm"},
        {"seeds": "-1"},
        {"models": {}},
        {"data": {"a": {"bank": "x"}}},
    ],
)
def test_impossible_settings_are_refused_at_once(
    config: Callable[..., SuiteConfig], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)


def test_models_and_data_can_be_named_in_the_command() -> None:
    words = ["models=runs/a,vit_tiny,base+runs/b", "data=assets/blood_cells", "out=x", "seeds=3"]
    config = load(SuiteConfig, "configs/suites/cells.yaml", words)
    assert config.models == {"a": "runs/a", "vit_tiny": "vit_tiny", "base+b": "base+runs/b"}
    assert config.reference == "a"
    assert config.data["blood_cells"].bank == "assets/blood_cells"
    assert config.seeds == (3,)
    alike = load(SuiteConfig, "configs/suites/cells.yaml", ["models=x/run,y/run", "out=x"])
    assert list(alike.models) == ["x/run", "y/run"]


def test_the_sample_suite_is_valid_for_the_images_that_come_along() -> None:
    config = load(SuiteConfig, "configs/suites/cells.yaml")
    for data in config.data.values():
        assert Path(data.bank.partition(":")[0]).is_dir()
    assert max(config.k) <= 400


def test_features_may_be_shared_by_suites(
    counted: Counted, config: Callable[..., SuiteConfig], tmp_path: Path
) -> None:
    shared = {"features": str(tmp_path / "shared"), "protocols": "knn", "models": {"one": "m0"}}
    first = run_suite(config(**shared))
    shutil.rmtree(tmp_path / "out")
    second = run_suite(config(**shared))
    assert (second["new_cells"], len(counted.extracted)) == (1, 2)
    assert second["rows"] == first["rows"]
