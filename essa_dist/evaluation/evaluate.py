"""The verb ``evaluate``: a model by its name or path, alone or with several adapters, probed on packed images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essa_dist.backbones import Backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.pixels import Window
from essa_dist.data.remote import CacheConfig
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.disk import write_whole
from essa_dist.distributed.collectives import rank
from essa_dist.errors import UsageError
from essa_dist.evaluation.probe import ProbeConfig, evaluate_model, find_device
from essa_dist.evaluation.protocols import Protocol
from essa_dist.evaluation.ranks import join
from essa_dist.export.attach import attach
from essa_dist.export.models import load_model
from essa_dist.settings.words import Several


class EvaluateConfig(ProbeConfig):
    """One model, one bank, one test set, one protocol."""

    protocol: Protocol
    """knn: weighted k nearest neighbours; linear: logistic regression; linear_sgd: a grid of heads trained by SGD; fewshot:
    a few images of each class; retrieval: the bank sorted by similarity."""
    model: str
    """timm name, weights file, run folder (its teacher) or export folder; prefix student: for that branch."""
    adapter: Several[str] = ()
    """Adapters to put on the model one after the other, as a,b,c: run folders or PEFT folders; the model comes first."""
    bank: str
    """Packed, labelled images to learn from: DIR or DIR:split (without a split: train)."""
    test: str
    """Packed, labelled images to be judged on: DIR or DIR:split (without a split: test, else val)."""
    window: Window = "header"
    """Real values shown black and white, e.g. [-1000, 400] in Hounsfield units; header: each image's own."""
    cache: CacheConfig = CacheConfig()
    """How remote images are fetched, and kept on this machine."""
    out: str | None = None
    """JSON file for the result; replaced if it exists."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Result of one protocol; ``evaluate_model`` lists its keys. Written to ``config.out`` where given.

    With adapters the result has ``rows``: the bare model's result and one for each adapter, with its ``adapter`` and
    ``trained_parameters``; the trunk is in memory once. Raises ``UsageError`` for settings that don't fit the model or
    the images, ``DataError`` for an image that can't be read, ``DivergedError`` for features that are not finite,
    ``WeightsError`` for a model that can't be loaded or an adapter of another trunk.
    """
    if config.out is not None and Path(config.out).is_dir():
        raise UsageError(f"out={config.out} is a folder: name a JSON file, for example {config.out}/knn.json")
    join(find_device(config.device))
    window = None if config.window == "header" else config.window
    bank = open_packed(config.bank, prefer=("train",), window=window, cache=config.cache)
    test = open_packed(config.test, prefer=("test", "val"), window=window, cache=config.cache)
    base = load_model(config.model)
    about = {"bank": config.bank, "test": config.test}
    if not config.adapter:
        result = _probe(base, bank, test, config) | about
    else:
        models = list(_adapted(base, config.adapter))  # a wrong one is told before minutes of evaluation
        rows = [_probe(base, bank, test, config) | {"adapter": None, "trained_parameters": 0}]
        rows += [_probe(model, bank, test, config) | row for model, row in models]
        result = {"protocol": config.protocol, "model": config.model, "rows": rows} | about
    if config.out is not None and rank() == 0:
        write_whole(Path(config.out), json.dumps(result, indent=2) + "\n")
    return result


def _probe(model: Backbone, bank: PackedImages, test: PackedImages, config: EvaluateConfig) -> dict[str, Any]:
    return evaluate_model(model, bank, test, (config.protocol,), config, model=config.model)[config.protocol]


def _adapted(base: Backbone, refs: tuple[str, ...]) -> Iterator[tuple[Backbone, dict[str, Any]]]:
    """A model over the parameters of ``base`` for each adapter, and how it is named in the result."""
    trunk_sha256, shared = parameters_sha256(base), {id(p) for p in base.parameters()}
    for ref in refs:
        model, _ = attach(base, ref, trunk_sha256=trunk_sha256)
        own = sum(p.numel() for p in model.parameters() if id(p) not in shared)
        yield model, {"adapter": ref, "trained_parameters": own}
