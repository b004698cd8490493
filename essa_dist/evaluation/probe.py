"""Probe the frozen features of a model that is in memory: extract once, then run each protocol on them."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError
from essa_dist.evaluation.classes import common_classes, renumber, warn_of_overlap
from essa_dist.evaluation.features import FeatureSet, Pooling, Progress, check_image_size, extract_features
from essa_dist.evaluation.knn import knn_probabilities
from essa_dist.evaluation.linear import linear_predictions
from essa_dist.evaluation.metrics import classification_metrics
from essa_dist.settings import Config

Protocol = Literal["knn", "linear"]


class ProbeConfig(Config):
    """How features are made and probed, whatever the model and the images."""

    image_size: int | None = Field(default=None, gt=0)
    """Side in pixels that the model sees, a multiple of its patch size; null: the model's own."""
    crop: float = Field(default=1.0, gt=0, le=1)
    """Central share of each side that is shown to the model: 1.0 the whole image, 0.65 its middle."""
    pooling: Pooling = "cls"
    """Feature of an image: class token, mean of the patch tokens, or both side by side."""
    k: int = Field(default=20, ge=1)
    """k-NN: neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """k-NN: a neighbour of cosine similarity s votes with weight exp(s / temperature)."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    workers: int = Field(default=2, ge=1)
    """Threads that decode and resize images."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: features under autocast, faster where the hardware has it, with about three digits."""
    seed: int = Field(default=0, ge=0)
    """Of the cross-validation folds and the bootstrap."""


def evaluate_model(
    backbone: Backbone,
    bank: PackedImages,
    test: PackedImages,
    protocols: Sequence[Protocol] = ("knn", "linear"),
    config: ProbeConfig | None = None,
    *,
    model: str | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """One result per protocol, from features that are extracted once; ``model`` is its name in the results.

    Keys: ``protocol, model, image_size, crop, pooling, n_bank, n_test, overlap`` (test images that are in the
    bank), ``classes, accuracy, balanced_accuracy, interval`` (95 %), ``confusion`` (rows are the truth),
    ``seed, seconds`` (extraction and this protocol); of knn ``k, temperature``; of linear ``C``.
    Raises what ``evaluate`` raises.
    """
    config = config or ProbeConfig()
    image_size = config.image_size or backbone.image_size
    device = _device(config.device)
    _refuse_early(backbone, image_size, bank, protocols, config)
    classes = common_classes(bank, test)
    common = {
        "model": model or backbone.name,
        "image_size": image_size,
        "crop": config.crop,
        "pooling": config.pooling,
        "n_bank": len(bank),
        "n_test": len(test),
        "overlap": warn_of_overlap(bank, test),
        "seed": config.seed,
        "classes": list(classes),
    }
    started = time.perf_counter()

    def features(images: PackedImages) -> FeatureSet:
        found = extract_features(
            backbone,
            images,
            image_size=image_size,
            crop=config.crop,
            pooling=config.pooling,
            batch_size=config.batch_size,
            workers=config.workers,
            device=device,
            bf16=config.precision == "bf16",
            progress=progress,
        )
        return found._replace(labels=renumber(found.labels, images.classes, classes))

    of_bank, of_test = features(bank), features(test)
    extraction = time.perf_counter() - started
    results: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        started = time.perf_counter()
        measured = _probe(protocol, of_bank, of_test, len(classes), config)
        seconds = round(extraction + time.perf_counter() - started, 3)
        results[protocol] = {"protocol": protocol, **common, **measured, "seconds": seconds}
    return results


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise UsageError(f"device={wanted!r} can't be used here: choose auto, cpu or a GPU it has") from error
    return torch.device(wanted)


def _refuse_early(
    backbone: Backbone,
    image_size: int,
    bank: PackedImages,
    protocols: Sequence[Protocol],
    config: ProbeConfig,
) -> None:
    """What would otherwise fail only after minutes of extraction."""
    check_image_size(image_size, backbone)
    if "knn" in protocols and config.k > len(bank):
        raise UsageError(f"k={config.k} is outside 1..{len(bank)} (the bank): lower k or enlarge the bank")


def _probe(
    protocol: Protocol, bank: FeatureSet, test: FeatureSet, num_classes: int, config: ProbeConfig
) -> dict[str, Any]:
    settings: dict[str, Any]
    if protocol == "knn":
        settings = {"k": config.k, "temperature": config.temperature}
        votes_MK = knn_probabilities(
            bank.features, bank.labels, test.features, num_classes=num_classes, **settings
        )
        predicted_M = votes_MK.argmax(dim=1)
    else:
        predicted_M, settings = _linear(bank, test, config.seed)
    metrics = classification_metrics(predicted_M, test.labels, num_classes=num_classes, seed=config.seed)
    return metrics._asdict() | settings


def _linear(bank: FeatureSet, test: FeatureSet, seed: int) -> tuple[Tensor, dict[str, Any]]:
    predicted, strength = linear_predictions(
        bank.features.numpy(), bank.labels.numpy(), test.features.numpy(), seed=seed
    )
    return torch.from_numpy(predicted), {"C": strength}
