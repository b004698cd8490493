"""Outside judges: an exported model in plain timm, its features judged by scikit-learn, give our figures.

Pixels go from the tars through Pillow, so nothing of this project is between the files and the judges' figures. The middle
of each image is shown as it is: Pillow's and torchvision's resizing round differently, which turns 2 of 800 images.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from essa_dist import adapt, export
from essa_dist.backbones import Backbone
from essa_dist.data.shards import open_packed
from essa_dist.evaluation import ProbeConfig, evaluate_model
from essa_dist.export.models import load_model

BLOOD = Path("assets/blood_cells")
SIZE, NATIVE = 64, 224
POINTS = 0.002


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet model, adapted by a few updates that are large enough to be seen in its features."""
    root = tmp_path_factory.mktemp("judged")
    adapt(
        "configs/smoke.yaml",
        "adapter=apla",
        "optim.lr=3e-3",
        "schedule.ema_momentum=0.5",
        "data.crops.global_size=48",
        "data.crops.local_size=32",
        "precision=fp32",
        "device=cpu",
        out=str(root / "run"),
    )
    return Path(export(str(root / "run"), out=str(root / "timm"))["out"])


def by_pillow_and_timm(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and class numbers of a packed split."""
    card = json.loads((folder / "config.json").read_text())
    model = timm.create_model(card["architecture"], num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    mean, std = (torch.tensor(card["pretrained_cfg"][key])[:, None, None] for key in ("mean", "std"))
    pixels, labels = [], []
    with tarfile.open(BLOOD / f"{split}-000000.tar") as tar:
        for member in tar:
            content = tar.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".cls"):
                labels.append(int(content))
                continue
            image = Image.open(io.BytesIO(content)).convert("RGB")
            assert image.size == (NATIVE, NATIVE)
            edges = (NATIVE - SIZE) // 2, (NATIVE + SIZE) // 2
            image = image.crop((edges[0], edges[0], edges[1], edges[1]))
            pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    with torch.inference_mode():
        parts = [model((chunk / 255 - mean) / std) for chunk in torch.stack(pixels).split(64)]
    return torch.cat(parts).numpy(), np.array(labels)


@pytest.fixture(scope="module")
def features(exported: Path) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return by_pillow_and_timm(exported, "train"), by_pillow_and_timm(exported, "test")


@pytest.fixture(scope="module")
def ours(exported: Path) -> dict[str, Any]:
    bank, test = open_packed(f"{BLOOD}:train"), open_packed(f"{BLOOD}:test")
    config = ProbeConfig(
        image_size=SIZE, crop=SIZE / NATIVE, k=(10, 20, 100, 200), temperature=(0.07, 0.1), device="cpu"
    )
    return evaluate_model(load_model(str(exported)), bank, test, ("knn", "linear"), config)


def test_the_judged_model_is_not_the_one_it_came_from(exported: Path, backbone: Backbone) -> None:
    frozen = load_model("vit_tiny_patch16_224")
    adapted = load_model(str(exported))
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        moved = (adapted(image).cls - frozen(image).cls).norm() / frozen(image).cls.norm()
    assert moved > 0.01


def test_k_nn_is_scikit_learns_at_every_k_and_temperature(
    features: tuple[tuple[np.ndarray, np.ndarray], ...], ours: dict[str, Any]
) -> None:
    (bank, labels), (test, truth) = features
    assert len(ours["knn"]["grid"]) == 8
    for row in ours["knn"]["grid"]:
        temperature = row["temperature"]
        judge = KNeighborsClassifier(
            row["k"], metric="cosine", weights=lambda d, t=temperature: np.exp((1 - d) / t)
        )
        predicted = judge.fit(bank, labels).predict(test)
        assert abs(row["balanced_accuracy"] - balanced_accuracy_score(truth, predicted)) < POINTS
        assert row["balanced_accuracy"] > 0.25  # chance is 0.125


def test_the_linear_probe_is_scikit_learns_logistic_regression(
    features: tuple[tuple[np.ndarray, np.ndarray], ...], ours: dict[str, Any]
) -> None:
    (bank, labels), (test, truth) = features
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=ours["linear"]["C"], max_iter=1000))
    predicted = judge.fit(bank, labels).predict(test)
    assert abs(ours["linear"]["balanced_accuracy"] - balanced_accuracy_score(truth, predicted)) < POINTS
