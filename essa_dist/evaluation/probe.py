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
from essa_dist.evaluation.classes import common_classes, warn_of_overlap
from essa_dist.evaluation.features import Progress, check_image_size, extract_features
from essa_dist.evaluation.protocols import PROTOCOLS, Protocol, ProtocolConfig, Task, check_fit
from essa_dist.evaluation.readings import Reading
from essa_dist.evaluation.samples import are_same, with_targets
from essa_dist.heads.pooled import Pooling
from essa_dist.settings import Config


class FeatureConfig(Config):
    """How features are made, whatever the model and the images."""

    image_size: int | None = Field(default=None, gt=0)
    """Side in pixels that the model sees, a multiple of its patch size; null: the model's own."""
    crop: float = Field(default=1.0, gt=0, le=1)
    """Central share of each side that is shown to the model: 1.0 the whole image, 0.65 its middle."""
    pooling: Pooling = "cls"
    """Feature of an image: class token, mean of the patch tokens, or both side by side."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    workers: int = Field(default=2, ge=1)
    """Threads that decode and resize images."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ...; under a launcher each rank takes its own GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: features under autocast, faster where the hardware has it, with about three digits."""


class ProbeConfig(ProtocolConfig, FeatureConfig):
    """How features are made and probed, whatever the model and the images."""

    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn: folds, held-out patients, shots, bootstrap."""


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
    bank), ``classes, seed, seconds`` (extraction and this protocol); what the protocol measured, with the 95 %
    ``interval`` of its headline; and the setting that this is of (of knn ``k, temperature``, of linear ``C``). With
    several settings ``grid`` has a mapping for each, the quoted one first. Under a launcher the ranks share the work,
    and all must call this. Raises what ``evaluate`` raises.
    """
    config = config or ProbeConfig()
    image_size = config.image_size or backbone.image_size
    device = find_device(config.device)
    classes = common_classes(bank, test)
    check_image_size(image_size, backbone)
    for protocol in protocols:
        check_fit(protocol, config, n_bank=len(bank), is_multilabel=bank.label_matrix is not None)
    is_harmless = set(protocols) == {"retrieval"} and are_same(bank, test)  # it leaves the image itself out
    common = {
        "model": model or backbone.name,
        "image_size": image_size,
        "crop": config.crop,
        "pooling": config.pooling,
        "n_bank": len(bank),
        "n_test": len(test),
        "overlap": warn_of_overlap(bank, test, is_harmless=is_harmless),
        "seed": config.seed,
        "classes": list(classes),
    }
    started = time.perf_counter()
    features = [features_of(backbone, images, config, device, progress) for images in (bank, test)]
    of_bank, of_test = with_targets((features[0], features[1]), bank, test, classes)
    extraction = time.perf_counter() - started
    results: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        started = time.perf_counter()
        task = Task(of_bank.to(device), of_test.to(device), classes, config, config.seed)
        measured = as_result(PROTOCOLS[protocol].run(task), seed=config.seed)
        seconds = round(extraction + time.perf_counter() - started, 3)
        results[protocol] = {"protocol": protocol, **common, **measured, "seconds": seconds}
    return results


def features_of(
    backbone: Backbone,
    images: PackedImages,
    config: FeatureConfig,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Features of all images, [n, C] fp32 on the CPU, extracted by all ranks together."""
    return extract_features(
        backbone,
        images,
        image_size=config.image_size or backbone.image_size,
        crop=config.crop,
        pooling=config.pooling,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        bf16=config.precision == "bf16",
        progress=progress,
        spread=True,
    ).features


def as_result(readings: Sequence[Reading], *, seed: int) -> dict[str, Any]:
    """The first reading, and with several a ``grid`` of all of them (confusions and single classes left out)."""
    found = [reading.result(seed=seed) | reading.setting for reading in readings]
    grid = [
        {name: value for name, value in one.items() if name not in ("confusion", "per_class", "left_out")}
        for one in found
    ]
    return found[0] | ({"grid": grid} if len(found) > 1 else {})


def find_device(wanted: str) -> torch.device:
    """The device that features are extracted on. Raises ``UsageError`` where it can't be used."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise UsageError(f"device={wanted!r} can't be used here: choose auto, cpu or a GPU it has") from error
    return torch.device(wanted)
