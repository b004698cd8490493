"""The verb ``predict``: a fine-tuned run over any images, to tables, masks and metrics."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.pixels import Window
from essa_dist.engine.recording.record import versions
from essa_dist.finetune.model import FinetunedModel, load_finetuned
from essa_dist.inference.classifying import THRESHOLD, Classifying
from essa_dist.inference.folder import OutFolder, Part, write, write_csv
from essa_dist.inference.images import ImagesConfig, OutConfig, open_images
from essa_dist.inference.interface import Images
from essa_dist.inference.job import How, Made, run
from essa_dist.inference.predictor import Forward, Predictor, Row
from essa_dist.inference.ranks import Ranks
from essa_dist.inference.segmenting import Segmenting
from essa_dist.inference.sliding import WindowConfig
from essa_dist.inference.stopping import stoppable
from essa_dist.inference.truth import Truth
from essa_dist.inference.work import One, Work

TABLE, METRICS, ABOUT = "predictions.csv", "metrics.json", "predictions.json"
PART_ITEMS = {"classes": 1024, "masks": 64}
"""Where the user says nothing."""


class PredictConfig(OutConfig, ImagesConfig):
    """One fine-tuned run, any images."""

    run: str
    """Folder of a run of `essa finetune` (its best checkpoint), or of a checkpoint in it."""
    window: Window | None = None
    """Real values shown black and white, e.g. [-1000, 400] in Hounsfield units; header: each image's own; null: as the
    run's own images were."""
    flip: bool = False
    """Mean of the probabilities of each image and of its mirror image: twice the time, a little more accurate."""
    threshold: float = Field(default=THRESHOLD, gt=0, lt=1)
    """Multi-label: the probability from which on an image has a label, in the table; metrics have their own."""
    windows: WindowConfig = WindowConfig()
    """Segmentation: how an image larger than the model's input is cut. Images are scaled as the run's own test images
    were (its data.evaluation)."""
    overlays: bool = True
    """Segmentation: draw each mask over its image too."""
    resamples: int = Field(default=1000, ge=0)
    """Of the bootstrap that gives the 95 % intervals of metrics, where labels are known (0: no intervals)."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""
    batch_size: int = Field(default=16, ge=1)
    """Images that are classified at once; of segmentation, those that are read ahead."""
    part_items: int | None = Field(default=None, ge=1)
    """Samples or files after which progress is recorded; what is unfinished of a part is made again after a kill. null:
    1024, of segmentation 64."""


def predict(config: PredictConfig) -> dict[str, Any]:
    """Write what the run says of ``config.images`` into ``config.out``; what was written, and how fast.

    Raises UsageError for a run, images or a folder that can't be used, DataError where there are no images or more are
    unreadable than the quota allows, DivergedError for probabilities that are not finite, Preempted after a signal.
    """
    with stoppable():
        return _predict(config)


def _predict(config: PredictConfig) -> dict[str, Any]:
    folder, ranks = OutFolder(Path(config.out), "predict"), Ranks(config.device)
    how = How(config.resume, config.overwrite, config.quota)
    ranks.first(lambda: folder.check(resume=how.resume, overwrite=how.overwrite))  # before seconds of loading
    model = load_finetuned(config.run)
    window = config.window or model.config.data.window
    images = open_images(config, window)
    truth = Truth(images, model.task, told=ranks.is_first)
    predictor = _predictor(config, model, truth, ranks.device)
    part_items = config.part_items or PART_ITEMS["masks" if isinstance(predictor, Segmenting) else "classes"]
    work = Work(
        images,
        predictor.prepare,
        part_items=part_items,
        batch_size=config.batch_size,
        workers=config.workers,
        quota=config.quota,
        processes=ranks.count,
    )

    def make(number: int, batches: Iterator[list[One[Any]]]) -> Made:
        rows: list[Row] = []
        files: list[Path] = []
        for batch in batches:
            new_rows, new_files = predictor.predict(batch)
            rows += new_rows
            files += new_files
        return Made(len(rows), files, rows)

    def finish(parts: list[Part], left_out: dict[str, int]) -> dict[str, Any]:
        rows = [row for part in parts for row in part.about]
        write_csv(folder.path / TABLE, _lines(predictor, images, rows))
        metrics = _metrics(predictor, images, rows, config)
        if metrics:
            _write_json(folder.path / METRICS, metrics)
        about = {
            "rows": len(rows),
            "run": config.run,
            "checkpoint": model.checkpoint.name,
            "task": model.task.kind,
            "images": config.images,
            "threshold": config.threshold,
            "left_out": left_out,
            "made_from": identity,
            "versions": versions(),
        }
        _write_json(folder.path / ABOUT, about)
        target = model.task.target_metric
        shown = {split: scores["values"].get(target) for split, scores in metrics.items()}
        return {"task": model.task.kind, "table": str(folder.path / TABLE)} | (
            {target: shown} if shown else {}
        )

    identity = _identity(config, images, model, window=window, part_items=part_items)
    return run(folder, ranks, work, how, identity, make=make, finish=finish)


def _predictor(
    config: PredictConfig, model: FinetunedModel, truth: Truth, device: torch.device
) -> Predictor[Any]:
    forward = Forward(model, device, flip=config.flip, bf16=config.precision == "bf16")
    if model.task.kind == "segmentation":
        return Segmenting(forward, truth, Path(config.out), config.windows, overlays=config.overlays)
    return Classifying(forward, truth, threshold=config.threshold)


def _lines(predictor: Predictor[Any], images: Images, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the table; with the split behind the key, where there are any."""
    lines = predictor.table(rows)
    if not images.packed:
        return lines
    splits = [images.packed[images.find(row["item"])[0]].split for row in rows]
    return [
        {"key": line.pop("key"), "split": split} | line for line, split in zip(lines, splits, strict=True)
    ]


def _metrics(
    predictor: Predictor[Any], images: Images, rows: Sequence[Row], config: PredictConfig
) -> dict[str, dict[str, Any]]:
    """Of each split with labels, over all its pictures that could be read."""
    metrics = {}
    known = [row for row in rows if row["truth"] is not None]
    for number, split in enumerate(images.packed):
        own = [row for row in known if images.find(row["item"])[0] == number]
        if own:
            patients = _patients(images, own)
            scores = predictor.score(own, resamples=config.resamples, seed=config.seed, patients=patients)
            metrics[split.split] = scores.as_dict()
    return metrics


def _patients(images: Images, rows: Sequence[Row]) -> NDArray[np.int64] | None:
    numbers = [images.facts(row["item"]).patient for row in rows]
    return None if None in numbers else np.array(numbers, np.int64)


def _identity(
    config: PredictConfig, images: Images, model: FinetunedModel, *, window: Window, part_items: int
) -> dict[str, Any]:
    """What the predictions depend on."""
    settings = config.model_dump(mode="json")
    names = ("flip", "precision", "windows", "overlays", "read")
    return {
        "images_sha256": images.identity,
        "backbone_sha256": parameters_sha256(model.backbone),
        "head_sha256": parameters_sha256(model.head),
        "task": model.task.kind,
        "classes": model.classes,
        "image_size": model.image_size,
        "evaluation": model.config.data.evaluation,
        "evaluation_share": model.config.data.evaluation_share,
        "window": window,
        "part_items": part_items,
        **{name: settings[name] for name in names},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write(path, f"{json.dumps(content, indent=1)}\n".encode())
