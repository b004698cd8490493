"""The verb ``evaluate``: a model by its name or path, probed on packed images."""

import json
import os
from pathlib import Path
from typing import Any

from essa_dist.data.shards import open_packed
from essa_dist.errors import UsageError
from essa_dist.evaluation.probe import ProbeConfig, Protocol, evaluate_model
from essa_dist.export.models import load_model


class EvaluateConfig(ProbeConfig):
    """One model, one bank, one test set, one protocol."""

    protocol: Protocol
    """knn: weighted k nearest neighbours; linear: logistic regression."""
    model: str
    """timm name, weights file, run folder (its teacher) or export folder; prefix student: for that branch."""
    bank: str
    """Packed, labelled images to learn from: DIR or DIR:split (without a split: train)."""
    test: str
    """Packed, labelled images to be judged on: DIR or DIR:split (without a split: test, else val)."""
    out: str | None = None
    """JSON file for the result; replaced if it exists."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Result of one protocol; ``evaluate_model`` lists its keys. Written to ``config.out`` where given.

    Raises ``UsageError`` for settings that don't fit the model or the images, ``DataError`` for an image that
    can't be read, ``DivergedError`` for features that are not finite, ``WeightsError`` for a model that can't
    be loaded.
    """
    if config.out is not None and Path(config.out).is_dir():
        raise UsageError(f"out={config.out} is a folder: name a JSON file, for example {config.out}/knn.json")
    bank = open_packed(config.bank, prefer=("train",))
    test = open_packed(config.test, prefer=("test", "val"))
    backbone = load_model(config.model)
    results = evaluate_model(backbone, bank, test, (config.protocol,), config, model=config.model)
    result = results[config.protocol] | {"bank": config.bank, "test": config.test}
    if config.out is not None:
        _write_json(result, Path(config.out))
    return result


def _write_json(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)
