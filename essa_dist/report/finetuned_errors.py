"""What a run of `essa finetune` got wrong on the test images: which classes it takes for which, and which images."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from essa_dist import runfolder
from essa_dist.errors import EssaError
from essa_dist.report.confusion import draw_one
from essa_dist.report.errors_seen import Seen, draw_errors, draw_masks, masks_seen, worst_judged
from essa_dist.report.record import Record
from essa_dist.report.section import Missing, Picture, Section, Table

log = logging.getLogger(__name__)

ERRORS = "Where it errs"


def finetune_command(record: Record) -> str:
    run = shlex.quote(str(record.run))
    return f"essa finetune {run}/config.yaml out={run} resume=true overwrite=false"


def confusion_section(found: Mapping[str, Any], out: Path) -> Section:
    path = out / "confusion.png"
    result = {"confusion": found["test"]["confusion"], "classes": found["classes"]}
    draw_one(result, path)
    unit = "pixels" if found["task"] == "segmentation" else "test images"
    counts = tuple(
        (str(name), *map(str, row)) for name, row in zip(found["classes"], result["confusion"], strict=True)
    )
    return Section(
        "Confusion between classes",
        text="Rows are the true class, columns the predicted one, in % of the row. The diagonal is the recall of a class.",
        pictures=(
            Picture(
                path, f"Confusion matrix of the {unit}; its counts are in the table below.", f"All {unit}."
            ),
        ),
        folded=(Table(f"Counts of {unit}", ("true class", *map(str, found["classes"])), counts),),
    )


def errors_section(record: Record, found: Mapping[str, Any], out: Path, count: int) -> Section:
    try:
        if not found:
            raise FileNotFoundError("no test images were judged")
        rows = dict(np.load(record.run / runfolder.EVALUATION / "test.npz"))
        masks = found["task"] == "segmentation"
        seen = masks_seen(record.run, rows, count) if masks else worst_judged(record.run, rows, count)
    except (EssaError, OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        log.warning("no pictures of errors: %s", text)
        return Section(
            ERRORS, missing=(Missing(f"pictures of test images. {text}.", finetune_command(record)),)
        )
    if not seen:
        return Section(ERRORS, "No test image was judged wrongly.")
    return _mask_section(seen, out) if masks else _wrong_section(seen, out)


def _wrong_section(seen: list[Seen], out: Path) -> Section:
    path = out / "errors.png"
    draw_errors(seen, path)
    rows = tuple((one.key, one.truth, one.said, f"{one.share:.3f}") for one in seen)
    return Section(
        ERRORS,
        "The test images about which the model was most certain and wrong: the first place to look for wrong labels, "
        "pictures of another kind, and what the model goes by instead.",
        pictures=(
            Picture(
                path,
                f"{len(seen)} test images that were judged wrongly; the table below it lists them.",
                "Most certain first.",
            ),
        ),
        folded=(Table("The same images", ("image", "true", "predicted", "probability"), rows),),
    )


def _mask_section(seen: list[Seen], out: Path) -> Section:
    path = out / "masks.png"
    draw_masks(seen, path)
    rows = tuple((one.key, f"{one.share:.3f}") for one in seen)
    return Section(
        ERRORS,
        "From the test images with the lowest Dice (mean over the classes but the first) to those with the highest.",
        pictures=(
            Picture(
                path,
                f"{len(seen)} test images with their predicted and true masks; their Dice is in the table below.",
                "Tinted: predicted. Lines: the true outlines. A tint outside every line is too much, a line around no tint was missed.",
            ),
        ),
        folded=(Table("The same images", ("image", "Dice"), rows),),
    )
