"""The verb's promises, on packed files: splits found, results written whole, real features as good as known."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier

from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError
from essa_dist.evaluation.evaluate import EvaluateConfig, evaluate
from essa_dist.packing.pack import PackConfig, pack

COLOURS = {"blue": (30, 30, 230), "red": (230, 30, 30)}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two colours in the splits train (6 images), test (4) and unlabelled (3)."""
    source, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("packed") / "set"
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2), ("unlabelled", 3)):
        for name, colour in COLOURS.items():
            folder = source / split / ("" if split == "unlabelled" else name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise = random.integers(-25, 25, (24, 24, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{split}{i}.png")
    pack(PackConfig(src=str(source), out=str(out)))
    return str(out)


@pytest.fixture
def settings(packed: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    verb = import_module("essa_dist.evaluation.evaluate")  # the package has the function under this name
    monkeypatch.setattr(verb, "load_model", lambda ref: backbone)
    return {
        "protocol": "knn",
        "model": "some_model",
        "bank": packed,
        "test": packed,
        "image_size": 32,
        "k": 3,
        "device": "cpu",
    }


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_bank_and_test_take_their_own_splits_of_one_set(settings: dict[str, Any], protocol: str) -> None:
    found = evaluate(EvaluateConfig(**settings | {"protocol": protocol}))
    assert (found["n_bank"], found["n_test"], found["overlap"]) == (6, 4, 0)
    assert (found["protocol"], found["model"], found["classes"]) == (protocol, "some_model", ["blue", "red"])
    assert found["confusion"] == [[2, 0], [0, 2]]


def test_a_split_evaluated_against_itself_is_warned_of(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = evaluate(EvaluateConfig(**settings | {"test": settings["bank"] + ":train"}))
    assert found["overlap"] == 6
    assert "LEAKAGE: 6 of the 6 test images" in caplog.text


def test_the_result_is_written_as_returned_and_nothing_else_is(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "evaluation" / "knn.json"
    found = evaluate(EvaluateConfig(**settings, out=str(out)))
    assert json.loads(out.read_text()) == found
    assert [path.name for path in out.parent.iterdir()] == ["knn.json"]


def test_an_out_that_is_a_folder_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder: name a JSON file"):
        evaluate(EvaluateConfig(**settings, out=str(tmp_path)))


def test_a_bank_without_labels_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^split 'unlabelled', given as bank, .*give a labelled split$"):
        evaluate(EvaluateConfig(**settings | {"bank": settings["bank"] + ":unlabelled"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 0},
        {"crop": 1.2},
        {"k": 0},
        {"temperature": 0},
        {"protocol": "svm"},
        {"image_size": 0},
        {"neighbours": 3},
    ],
)
def test_impossible_settings_are_refused_at_once(settings: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EvaluateConfig(**settings | wrong)


def test_one_k_gives_the_keys_it_always_gave_and_several_a_grid(settings: dict[str, Any]) -> None:
    one = evaluate(EvaluateConfig(**settings))
    assert (one["k"], one["temperature"]) == (3, 0.07)
    assert "grid" not in one
    several = evaluate(EvaluateConfig(**settings | {"k": "3,1, 6", "temperature": "0.07,0.1"}))
    assert [(row["k"], row["temperature"]) for row in several["grid"]] == [
        (k, t) for k in (3, 1, 6) for t in (0.07, 0.1)
    ]
    assert {key: several[key] for key in one if key != "seconds"} == {
        key: one[key] for key in one if key != "seconds"
    }


@pytest.mark.parametrize("protocol", ["linear_sgd", "fewshot", "retrieval"])
def test_every_protocol_tells_two_colours_apart(settings: dict[str, Any], protocol: str) -> None:
    asked = settings | {"protocol": protocol, "shots": 2, "draws": 3, "steps": 20, "at": "1,2"}
    found = evaluate(EvaluateConfig(**asked))
    metric = "map" if protocol == "retrieval" else "balanced_accuracy"
    assert found[metric] == 1
    assert found["interval"] == [1, 1]


@pytest.fixture(scope="module")
def two_flags(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images that are red or not and bright or not, by patient; of some one of both is not known."""
    folder = tmp_path_factory.mktemp("flags")
    random = np.random.default_rng(0)
    lines = ["path,patient,split,red,bright"]
    for i in range(48):
        red, bright, split = i % 2, i // 2 % 2, "train" if i < 32 else "test"
        pixels = np.full((24, 24, 3), 40 + 120 * bright) + random.integers(-20, 20, (24, 24, 3))
        pixels[:, :, 0] += 70 * red
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{split}{i // 4},{split},{red},{bright if i % 5 else -1}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    pack(PackConfig(src=str(folder / "table.csv"), out=str(folder / "packed")))
    return str(folder / "packed")


@pytest.mark.parametrize("protocol", ["knn", "linear", "linear_sgd", "retrieval"])
def test_images_with_several_labels_are_judged_by_every_protocol_that_can(
    settings: dict[str, Any], two_flags: str, protocol: str
) -> None:
    asked = settings | {"protocol": protocol, "bank": two_flags, "test": two_flags, "steps": 100}
    found = evaluate(EvaluateConfig(**asked))
    assert found["classes"] == ["red", "bright"]
    if protocol == "retrieval":
        assert found["n_queries"] < found["n_test"]  # some show neither
        assert found["recall_at_1"] > 0.8
        return
    assert found["auroc"] > 0.9
    assert found["interval"][0] <= found["auroc"] <= found["interval"][1]
    assert {name: one["n"] for name, one in found["per_class"].items()} == {"red": 8, "bright": 7}


def test_few_shots_of_images_with_several_labels_are_refused(
    settings: dict[str, Any], two_flags: str
) -> None:
    with pytest.raises(UsageError, match="choose knn, linear, linear_sgd or retrieval"):
        evaluate(EvaluateConfig(**settings | {"protocol": "fewshot", "bank": two_flags, "test": two_flags}))


SIZE = 112
BANK, TEST = 12, 8  # images of each class


def plain_features(weights: Path, images: list[Path]) -> torch.Tensor:
    """By Pillow and timm alone."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    state = {name: t.float() for name, t in load_file(weights).items() if not name.startswith("head.")}
    model.load_state_dict(state)
    resized = [
        np.asarray(Image.open(image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for image in images
    ]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 127.5 - 1  # mean = std = 0.5
    with torch.inference_mode():
        return torch.cat([model(chunk) for chunk in pixels.split(32)])


def test_real_cells_are_told_apart_as_well_as_by_plain_timm_and_scikit_learn(
    shared: Path, tmp_path: Path
) -> None:
    folders = sorted(path for path in (shared / "data" / "pbc_blood").iterdir() if path.is_dir())
    images = {folder.name: sorted(folder.glob("*.jpg"))[: BANK + TEST] for folder in folders}
    splits = ["train"] * BANK + ["test"] * TEST
    rows = [f"{path},{c},{split}" for c in images for path, split in zip(images[c], splits, strict=True)]
    (tmp_path / "cells.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    cells = str(tmp_path / "packed")
    pack(PackConfig(src=str(tmp_path / "cells.csv"), out=cells))
    weights = shared / "weights" / "vit_tiny_patch16_224_in1k_fp16.safetensors"
    config = EvaluateConfig(
        protocol="knn", model=str(weights), bank=cells, test=cells, image_size=SIZE, k=5, device="cpu"
    )
    found = evaluate(config)

    bank = plain_features(weights, [path for c in images for path in images[c][:BANK]])
    test = plain_features(weights, [path for c in images for path in images[c][BANK:]])
    oracle = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = oracle.fit(bank, np.repeat(range(8), BANK)).score(test, np.repeat(range(8), TEST))

    assert (found["n_bank"], found["n_test"]) == (8 * BANK, 8 * TEST)
    assert found["classes"] == sorted(images)
    assert expected > 0.4  # chance is 0.125
    assert abs(found["balanced_accuracy"] - expected) <= 1 / (
        8 * TEST
    )  # one image; resizing rounds differently
    assert found["interval"][0] < found["balanced_accuracy"] < found["interval"][1]


def test_adapters_stand_side_by_side_the_bare_model_first(
    settings: dict[str, Any], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = import_module("essa_dist.evaluation.evaluate")
    states = []

    def attach(base: Backbone, ref: str, *, trunk_sha256: str) -> tuple[Backbone, None]:
        model = base.over_the_same_parameters()
        norm = model.vit.norm
        norm.bias = torch.nn.Parameter(norm.bias + {"one": 1.0, "two": 5.0}[ref])
        states.append(model)
        return model, None

    monkeypatch.setattr(verb, "attach", attach)
    before = backbone.vit.norm.bias.clone()
    bare = evaluate(EvaluateConfig(**settings))
    found = evaluate(EvaluateConfig(**settings | {"adapter": "one, two"}))
    assert [row["adapter"] for row in found["rows"]] == [None, "one", "two"]
    assert [row["trained_parameters"] for row in found["rows"]] == [0, 192, 192]
    assert found["rows"][0]["balanced_accuracy"] == bare["balanced_accuracy"]
    assert torch.equal(backbone.vit.norm.bias, before)
    shared = {id(p) for p in backbone.parameters()}
    assert all(sum(id(p) not in shared for p in model.parameters()) == 1 for model in states)
