"""`essa predict`: tables, masks and metrics of a fine-tuned model."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from essa_dist import verbs
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.data.batch import normalise
from essa_dist.data.labelled.loader import LabelledDataConfig
from essa_dist.data.shards import open_packed
from essa_dist.errors import UsageError
from essa_dist.evaluation.features import prepare_image
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.head import make_head
from essa_dist.finetune.model import FinetunedModel
from essa_dist.inference import predict as verb
from essa_dist.inference.predict import PredictConfig, predict
from essa_dist.tasks import TASKS
from tests.conftest import picture
from tests.inference.conftest import Forked, contents

SIDE = 32
Call = Callable[..., dict[str, Any]]


def finetuned(
    kind: str, classes: tuple[str, ...], *, seed: int = 0, evaluation: Any = "whole"
) -> FinetunedModel:
    """As a run leaves it, but for its training: weights large enough that no two images are judged alike."""
    torch.manual_seed(seed)
    backbone = build_backbone(BackboneConfig(name="test_vit", weights="random"), seed=1)
    config = FinetuneConfig(out="unused", seed=seed, data=LabelledDataConfig(evaluation=evaluation))
    settings, task_class = TASKS[kind]
    task = task_class(settings(), classes)
    head = make_head(backbone, task, config)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    backbone.eval().requires_grad_(False)
    return FinetunedModel(
        backbone, head.eval().requires_grad_(False), task, classes, SIDE, config, Path("step_7")
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FinetunedModel]:
    """``model(kind, classes)`` is what every run turns out to be."""

    def make(*args: Any, **kwargs: Any) -> FinetunedModel:
        made = finetuned(*args, **kwargs)
        monkeypatch.setattr(verb, "load_finetuned", lambda ref: made)
        return made

    return make


@pytest.fixture
def write_predictions(tmp_path: Path) -> Call:
    def call(name: str, **settings: Any) -> dict[str, Any]:
        given = {"run": "run", "device": "cpu", "part_items": 3, "batch_size": 2, "resamples": 0}
        return predict(PredictConfig(**{**given, "out": str(tmp_path / name), **settings}))

    return call


@pytest.fixture(scope="session")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Images of different sizes with masks: their folder, and packed in one split."""
    root = tmp_path_factory.mktemp("nuclei")
    for folder in ("images/a", "masks/a"):
        (root / folder).mkdir(parents=True)
    for i, (width, height) in enumerate(((40, 32), (33, 50), (64, 64), (70, 41))):
        picture(i, width, height).save(root / "images" / "a" / f"{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[3 : 12 + 5 * i, 4:20] = 1
        Image.fromarray(mask).save(root / "masks" / "a" / f"{i}.png")
    out = root / "packed"
    verbs.pack(
        root / "images",
        out=str(out),
        masks=str(root / "masks"),
        workers=0,
        report=False,
        splits={"test": 1.0},
    )
    return root / "images", str(out)


def plain_logits(model: FinetunedModel, pixels: torch.Tensor) -> torch.Tensor:
    backbone = model.backbone
    return model.logits(normalise(prepare_image(pixels, SIDE)[None], backbone.mean, backbone.std))[0]


def test_a_table_says_what_the_model_says_of_each_image(
    packed: str, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    made = model("multiclass", ("dog", "cat", "fox"))  # in another order than the set's, and one it hasn't
    write_predictions("out", images=packed)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("key")
    assert len(table) == 13
    for split in ("train", "test"):
        images = open_packed(f"{packed}:{split}")
        for i, key in enumerate(images.keys):
            probabilities = plain_logits(made, images.decode(i)).softmax(0)
            row = table.loc[key]
            np.testing.assert_allclose(
                row[["p_dog", "p_cat", "p_fox"]].astype(float), probabilities, atol=1e-4
            )
            assert row["predicted"] == made.classes[int(probabilities.argmax())]
            assert row["truth"] == images.classes[int(images.index.label[i])]
            assert row["split"] == split


def test_metrics_are_of_each_split_and_those_of_scikit_learn(
    packed: str, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("multiclass", ("cat", "dog"))
    shown = write_predictions("out", images=packed, resamples=20)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert sorted(metrics) == ["test", "train"]
    for split, found in metrics.items():
        own = table[table["split"] == split]
        expected = balanced_accuracy_score(own["truth"], own["predicted"])
        assert found["values"]["balanced_accuracy"] == pytest.approx(expected)
        assert found["n"] == len(own)
        low, high = found["intervals"]["balanced_accuracy"]
        assert low <= expected <= high
        assert shown["balanced_accuracy"][split] == found["values"]["balanced_accuracy"]


def test_files_have_no_metrics(folder: Path, tmp_path: Path, model: Any, write_predictions: Call) -> None:
    model("multiclass", ("cat", "dog"))
    write_predictions("out", images=str(folder))
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "truth" not in pd.read_csv(tmp_path / "out" / "predictions.csv")


def test_labels_of_another_task_are_not_judged(
    packed: str, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("multiclass", ("fox", "owl"))
    write_predictions("out", images=packed)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 13


def test_several_labels_are_flagged_from_the_threshold_on(
    folder: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("multilabel", ("oedema", "mass", "effusion"))
    write_predictions("out", images=str(folder), threshold=0.3)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    flags = 0
    for name in ("oedema", "mass", "effusion"):
        assert (table[f"is_{name}"] == (table[f"p_{name}"] >= 0.3)).all()
        assert [name in words.split("|") for words in table["predicted"]] == (
            table[f"is_{name}"] == 1
        ).tolist()
        flags += table[f"is_{name}"].sum()
    assert 0 < flags < 3 * len(table)
    model("multiclass", ("cat", "dog"))
    with pytest.raises(UsageError, match=r"threshold=0\.3 is for multi-label"):
        write_predictions("other", images=str(folder), threshold=0.3)


def test_grades_have_an_expected_grade(
    folder: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("ordinal", ("2", "0", "1", "3"))
    write_predictions("out", images=str(folder))
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    expected = sum(grade * table[f"p_{grade}"] for grade in range(4))
    np.testing.assert_allclose(table["expected_grade"], expected, atol=1e-4)


@pytest.fixture
def mirrored(tmp_path: Path) -> Path:
    """Three images and, behind each, its mirror image."""
    root = tmp_path / "mirrored"
    root.mkdir()
    for i in range(3):
        plain = picture(i).resize((SIDE, SIDE))
        plain.save(root / f"{i}_a.png")
        plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / f"{i}_b.png")
    return root


def test_flip_is_the_mean_with_the_mirror_image(
    mirrored: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("binary", ("cat", "dog"))
    found = []
    for name, flip in (("plain", False), ("flip", True)):
        write_predictions(name, images=str(mirrored), flip=flip)
        found.append(pd.read_csv(tmp_path / name / "predictions.csv")["p_dog"].to_numpy().reshape(3, 2))
    plain, flip = found
    assert np.abs(plain[:, 0] - plain[:, 1]).max() > 1e-3
    for column in flip.T:
        np.testing.assert_allclose(column, plain.mean(axis=1), rtol=1e-3)


def test_masks_with_flip_are_mirrored_with_the_image(
    mirrored: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("segmentation", ("background", "nucleus", "other"))
    differ = {}
    for flip in (False, True):
        write_predictions(str(flip), images=str(mirrored), flip=flip)
        masks = {
            path.stem: np.array(Image.open(path)) for path in (tmp_path / str(flip) / "masks").glob("*.png")
        }
        differ[flip] = sum(int((masks[f"{i}_a"] != masks[f"{i}_b"][:, ::-1]).sum()) for i in range(3))
    assert differ[False] > 0
    assert differ[True] == 0


@pytest.mark.parametrize("evaluation", ["whole", "native"])
def test_masks_are_those_of_the_model_in_the_size_of_the_image(
    nuclei: tuple[Path, str], tmp_path: Path, model: Any, write_predictions: Call, evaluation: Any
) -> None:
    made = model("segmentation", ("background", "nucleus", "other"), evaluation=evaluation)
    write_predictions("out", images=str(nuclei[0]))
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("key")
    files = sorted(path.relative_to(nuclei[0]) for path in nuclei[0].rglob("*.png"))
    for path in files:
        pixels = torch.from_numpy(np.array(Image.open(nuclei[0] / path).convert("RGB"))).permute(2, 0, 1)
        with Image.open(tmp_path / "out" / "masks" / path) as image:
            assert image.mode == "P"
            mask = torch.from_numpy(np.array(image))
        assert mask.shape == pixels.shape[1:]
        if evaluation == "whole":
            logits = F.interpolate(plain_logits(made, pixels)[None], size=mask.shape, mode="bilinear")
            assert (mask == logits.argmax(1)[0]).float().mean() > 0.999
        row = table.loc[path.as_posix()]
        for k, name in enumerate(made.classes):
            assert row[f"pixels_{name}"] == (mask == k).sum()
        assert np.array(Image.open(tmp_path / "out" / "overlays" / path)).shape == (*mask.shape, 3)
    assert {len(np.unique(np.array(Image.open(p)))) for p in (tmp_path / "out" / "masks").rglob("*.png")} != {
        1
    }


def test_masks_are_judged_by_those_of_the_set(
    nuclei: tuple[Path, str], tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("segmentation", ("background", "foreground"))
    write_predictions("out", images=nuclei[1], overlays=False)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["values"]
    dice = []
    for path in sorted((nuclei[0].parent / "masks").rglob("*.png")):
        truth = np.array(Image.open(path))
        mask = np.array(Image.open(tmp_path / "out" / "masks" / path.relative_to(nuclei[0].parent / "masks")))
        dice.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert found["dice"] == pytest.approx(np.mean(dice))
    assert not (tmp_path / "out" / "overlays").exists()


def test_a_killed_call_goes_on_and_ends_in_the_same_bytes(
    nuclei: tuple[Path, str], tmp_path: Path, model: Any
) -> None:
    model("segmentation", ("background", "foreground"))

    def words(out: Path) -> list[str]:
        return [
            "predict",
            "run=run",
            f"images={nuclei[1]}",
            f"out={out}",
            "part_items=1",
            "device=cpu",
            "resamples=0",
        ]

    with Forked(words(tmp_path / "straight")) as straight:
        assert straight.exit_code() == 0
    out = tmp_path / "killed"
    with Forked(words(out), pause_s=0.3) as killed:
        killed.stop_when((out / "journal" / "00001.json").exists, signal.SIGKILL)
    assert not (out / "predictions.csv").exists()
    next((out / "masks").rglob("*.png")).unlink()  # and a finished part was damaged
    with Forked([*words(out), "resume=true"]) as resumed:
        assert resumed.exit_code() == 0
    assert contents(out) == contents(tmp_path / "straight")


def test_another_model_never_goes_on_in_the_folder(
    folder: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("multiclass", ("cat", "dog"))
    write_predictions("out", images=str(folder))
    model("multiclass", ("cat", "dog"), seed=5)
    with pytest.raises(UsageError, match="head_sha256 was"):
        write_predictions("out", images=str(folder), resume=True)
    assert write_predictions("out", images=str(folder), overwrite=True)["made_here"] == 13


def test_windows_that_can_not_be_leave_no_folder(
    folder: Path, tmp_path: Path, model: Any, write_predictions: Call
) -> None:
    model("segmentation", ("background", "foreground"))
    with pytest.raises(UsageError, match="crop=33 is not a multiple of the patch size"):
        write_predictions("out", images=str(folder), windows={"crop": 33})
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path, write_predictions: Call) -> None:
    with pytest.raises(UsageError, match="is no run of essa finetune"):
        write_predictions("out", images=str(folder), run=str(folder))
    assert not (tmp_path / "out").exists()


def test_a_run_predicts_what_it_was_tested_with(packed: str, tmp_path: Path, write_predictions: Call) -> None:
    """The whole way: `essa finetune`, then `essa predict` on its test images."""
    run = tmp_path / "run"
    verbs.call(
        "finetune",
        None,
        (
            f"out={run}",
            f"data.train={packed}",
            f"data.val={packed}:test",
            f"data.test={packed}:test",
            "duration=2",
        ),
        {
            "backbone": {"name": "test_vit", "weights": "random"},
            "data": {"image_size": SIDE, "workers": 0},
            "batch_size": 2,
            "precision": "fp32",
            "device": "cpu",
        },
    )
    tested = json.loads((run / "evaluation" / "test.json").read_text())["test"]["values"]
    write_predictions("out", images=f"{packed}:test", run=str(run))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["values"]
    assert found == {name: pytest.approx(tested[name]) for name in found}
    assert "auroc" in found
