"""The first crops that the run trained on, made again from its config."""

import logging
from pathlib import Path

from torch import Tensor

from essa_dist.data import Batch
from essa_dist.errors import EssaError
from essa_dist.report.pictures import Pixels, draw_crops, pixels
from essa_dist.report.record import Record
from essa_dist.report.section import Missing, Picture, Section
from essa_dist.report.steps import seen_step

log = logging.getLogger(__name__)

SAMPLES = 8
LOCALS = 4  # kinds of local crop shown; more are of the same making
TITLE = "Augmented crops"


def crops_section(record: Record, out: Path) -> Section:
    """Views of the first training images; says so where the data or the config can't be had."""
    try:
        batch = seen_step(record.config, 1, count=SAMPLES).batch
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


def _views(batch: Batch) -> list[tuple[str, list[Pixels]]]:
    kinds = [(f"global {i + 1}", crops) for i, crops in enumerate(batch.global_crops)]
    kinds += [(f"local {i + 1}", crops) for i, crops in enumerate(batch.local_crops[:LOCALS])]
    return [(name, _as_pictures(crops)) for name, crops in kinds]


def _as_pictures(crops: Tensor) -> list[Pixels]:
    return list(pixels(list(crops)))
