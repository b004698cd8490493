"""The first crops that the run trained on, made again from its config."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from essa_dist.backbones import BackboneConfig, build_architecture
from essa_dist.data import Batch, open_packed
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.errors import EssaError, UsageError
from essa_dist.report.pictures import Pixels, draw_crops, pixels
from essa_dist.report.record import Record
from essa_dist.report.section import Missing, Picture, Section

log = logging.getLogger(__name__)

SAMPLES = 8
LOCALS = 4  # kinds of local crop shown; more are of the same making
TITLE = "Augmented crops"


def crops_section(record: Record, out: Path) -> Section:
    """Views of the first training images; says so where the data or the config can't be had."""
    try:
        batch = first_batch(record.config)
    except (EssaError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        log.warning("no pictures of crops: %s", text)
        return Section(TITLE, missing=(Missing(f"pictures of the training crops. {text}."),))
    path = out / "crops.png"
    draw_crops(_views(batch), path)
    sizes = ", ".join(
        f"{crops.shape[-1]} px" for crops in (batch.global_crops, batch.local_crops) if len(crops)
    )
    picture = Picture(
        path,
        alt=f"Augmented crops of {len(batch.keys)} training images: two global and some local ones of each.",
        caption=f"The first training images of the run, one a column, as the model got them ({sizes}, before normalisation).",
    )
    return Section(TITLE, pictures=(picture,))


def first_batch(config: Mapping[str, Any]) -> Batch:
    """The first samples of the run's first step, uint8.

    Augmentations follow from the seed and a sample's place in the stream, not from the batch size, so a small
    batch shows the run's own crops (its masks, which do depend on the batch, differ). Raises UsageError,
    DataError or ValueError where the config or the images aren't those of a run.
    """
    if not isinstance(config.get("data"), dict) or not isinstance(config.get("backbone"), dict):
        raise UsageError("config.yaml has no data and backbone sections: it is not one that adapt wrote")
    data = DataConfig.model_validate(config["data"]).model_copy(
        update={"workers": 0}
    )  # eight images: no processes
    with torch.device("meta"):  # the patch size is all that is wanted of it
        patch_size = build_architecture(BackboneConfig.model_validate(config["backbone"])).patch_size
    loader = CropLoader(
        open_packed(data.train, prefer=("unlabelled", "train")),
        data,
        seed=int(config.get("seed", 0)),
        global_batch=min(int(config.get("batch_size", SAMPLES)), SAMPLES),
        patch_size=patch_size,
    )
    return next(iter(loader.batches(0, 1)))


def _views(batch: Batch) -> list[tuple[str, list[Pixels]]]:
    kinds = [(f"global {i + 1}", crops) for i, crops in enumerate(batch.global_crops)]
    kinds += [(f"local {i + 1}", crops) for i, crops in enumerate(batch.local_crops[:LOCALS])]
    return [(name, _as_pictures(crops)) for name, crops in kinds]


def _as_pictures(crops: Tensor) -> list[Pixels]:
    return list(pixels(list(crops)))
