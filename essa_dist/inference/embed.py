"""The verb ``embed``: features of any images by any model, as files.

Shapes: B batch, N patches, C channels.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from essa_dist.backbones import Backbone, Features
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.batch import normalise
from essa_dist.data.pixels import Window
from essa_dist.engine.recording.record import versions
from essa_dist.errors import DivergedError
from essa_dist.evaluation.features import check_image_size, prepare_image
from essa_dist.export.models import load_model
from essa_dist.heads.pooled import pool
from essa_dist.inference.features import ABOUT, Format, Table, open_writer
from essa_dist.inference.folder import OutFolder, Part, write
from essa_dist.inference.images import ImagesConfig, OutConfig, open_images
from essa_dist.inference.interface import Images
from essa_dist.inference.job import How, Made, run
from essa_dist.inference.ranks import Ranks
from essa_dist.inference.stopping import stoppable
from essa_dist.inference.work import One, Work

PART_BYTES, PART_ITEMS = 64 * 2**20, 4096
"""Of the features of a part, and its items, at most; where the user says nothing."""


class EmbedConfig(OutConfig, ImagesConfig):
    """One model, any images."""

    model: str
    """timm name, weights file, run folder (its teacher) or export folder; prefix student: for that branch."""
    window: Window = "header"
    """Real values shown black and white, e.g. [-1000, 400] in Hounsfield units; header: each image's own."""
    format: Format = "parquet"
    """parquet: read by pandas, polars, DuckDB, ...; npz: by numpy alone."""
    pooling: Literal["cls", "mean", "cls+mean", "patches"] = "cls"
    """Feature of an image: class token, mean of the patch tokens, both side by side, or every patch token."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """fp16: half the size, about three digits."""
    image_size: int | None = Field(default=None, gt=0)
    """Side in pixels that the model sees, a multiple of its patch size; null: the model's own."""
    crop: float = Field(default=1.0, gt=0, le=1)
    """Central share of each side that is shown to the model: 1.0 the whole image, 0.65 its middle."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    part_items: int | None = Field(default=None, ge=1)
    """Samples or files in one file of features; what is unfinished of a part is lost when a job is killed. null: as many
    as make 64 MB, 4096 at most."""


def embed(config: EmbedConfig) -> dict[str, Any]:
    """Write the features of ``config.images`` into ``config.out``; what was written, and how fast.

    Raises UsageError for settings that don't fit the model, the images or the folder, DataError where there are no
    images or more are unreadable than the quota allows, WeightsError for a model that can't be loaded, DivergedError
    for features that are not finite, Preempted after a signal.
    """
    with stoppable():
        return _embed(config)


def _embed(config: EmbedConfig) -> dict[str, Any]:
    folder, ranks = OutFolder(Path(config.out), "embed"), Ranks(config.device)
    how = How(config.resume, config.overwrite, config.quota)
    ranks.first(lambda: folder.check(resume=how.resume, overwrite=how.overwrite))  # before seconds of loading
    images, model = open_images(config, config.window), load_model(config.model)
    image_size = config.image_size or model.image_size
    check_image_size(image_size, model)
    table = _table(images, model, config, image_size)
    part_items = config.part_items or max(1, min(PART_ITEMS, PART_BYTES // table.bytes))
    identity = _identity(config, images, model, image_size=image_size, part_items=part_items)
    work = Work(
        images,
        lambda pixels: prepare_image(pixels, image_size, config.crop),
        part_items=part_items,
        batch_size=config.batch_size,
        workers=config.workers,
        quota=config.quota,
        processes=ranks.count,
    )
    features = _Model(model, config, ranks.device)

    def make(number: int, batches: Iterator[list[One[Tensor]]]) -> Made:
        writer, rows = open_writer(folder.path, number, table, config.format), 0
        for batch in batches:
            facts = [images.facts(one.item) for one in batch]
            writer.add([one.key for one in batch], facts, features(batch).numpy())
            rows += len(batch)
        return Made(rows, [writer.close()], [])

    def finish(parts: list[Part], left_out: dict[str, int]) -> dict[str, Any]:
        files = [
            {"file": name, "rows": part.rows, "sha256": sha}
            for part in parts
            for name, sha in part.files.items()
        ]
        about = {
            "rows": sum(part.rows for part in parts),
            "shape": table.shape,
            "dtype": config.dtype,
            "format": config.format,
            "model": config.model,
            "weights": model.weights_source,
            "images": config.images,
            "classes": images.classes,
            "left_out": left_out,
            "made_from": identity,
            "versions": versions(),
            "parts": files,
        }
        write(folder.path / ABOUT, f"{json.dumps(about, indent=1)}\n".encode())
        return {"shape": list(table.shape), "dtype": config.dtype, "parts": len(parts)}

    return run(folder, ranks, work, how, identity, make=make, finish=finish)


class _Model:
    """What the model makes of a batch."""

    def __init__(self, model: Backbone, config: EmbedConfig, device: torch.device) -> None:
        self._model, self._pooling, self._device = model.to(device), config.pooling, device
        self._dtype = torch.float32 if config.dtype == "fp32" else torch.float16
        self._bf16 = config.precision == "bf16"

    def __call__(self, batch: Sequence[One[Tensor]]) -> Tensor:
        """[B, C] or [B, N, C] on the CPU. Raises DivergedError where one is not finite."""
        images = torch.stack([one.value for one in batch]).to(self._device)
        autocast = torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            tokens: Features = self._model(normalise(images, self._model.mean, self._model.std))
            found = tokens.patches if self._pooling == "patches" else pool(tokens, self._pooling)
            features: Tensor = found.to(self._dtype).cpu()
        finite = features.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            key = batch[int((~finite).nonzero()[0])].key
            raise DivergedError(
                f"{self._model.name} gave features that are not finite, first for {key!r}: its weights have diverged or "
                "don't belong to it, use an earlier checkpoint; or they are too large for dtype=fp16"
            )
        return features


def _table(images: Images, model: Backbone, config: EmbedConfig, image_size: int) -> Table:
    width = model.embed_dim * (2 if config.pooling == "cls+mean" else 1)
    patches = (image_size // model.patch_size) ** 2
    return Table(
        shape=(patches, width) if config.pooling == "patches" else (width,),
        dtype=config.dtype,
        split=bool(images.packed),
        classes=len(images.classes),
        several=images.several,
        patient=bool(images.packed),
    )


def _identity(
    config: EmbedConfig, images: Images, model: Backbone, *, image_size: int, part_items: int
) -> dict[str, Any]:
    """What the features depend on."""
    names = ("format", "pooling", "dtype", "crop", "precision", "window")
    settings = config.model_dump(mode="json")
    return {
        "images_sha256": images.identity,
        "backbone": model.name,
        "parameters_sha256": parameters_sha256(model),
        "mean": model.mean,
        "std": model.std,
        "image_size": image_size,
        "part_items": part_items,
        **{name: settings[name] for name in names},
        "read": settings["read"],
    }
