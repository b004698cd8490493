"""Test images of a fine-tuned run beside what it said of them.

Shapes: M test images, K classes, S pixels.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.data.batch import normalise
from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.labelled.transforms import prepare
from essa_dist.data.shards import PackedImages
from essa_dist.errors import UsageError
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.model import FinetunedModel, load_finetuned
from essa_dist.inference.overlay import overlay
from essa_dist.inference.sliding import sliding_logits
from essa_dist.report.pictures import pixels
from essa_dist.report.plotting import bare, canvas, grid, short
from essa_dist.report.samples import square
from essa_dist.runfolder import CONFIG
from essa_dist.settings import load

COLUMNS = 6
Rows = dict[str, NDArray[Any]]
"""Of ``test.npz``."""


class Seen(NamedTuple):
    """One test image."""

    image: Tensor
    """uint8 [3, S, S], as it is shown."""
    key: str
    truth: str
    said: str
    share: float
    """Probability of what was said; of masks, Dice."""


def worst_judged(run: Path, rows: Rows, count: int) -> list[Seen]:
    """Up to ``count`` images of which the wrong was held most probable, most first.

    Where an image may show several classes, one that is said to show what it doesn't, or not to show what it does,
    comes once, with the class at which it is most wrong.
    """
    probabilities, targets, classes = rows["probabilities"], rows["targets"], rows["classes"]
    at = np.arange(len(targets))
    if targets.ndim == 1:
        said = probabilities.argmax(axis=1)
        wrong = said != targets
        share = probabilities[at, said]
        words = [(str(classes[t]), str(classes[s])) for t, s in zip(targets, said, strict=True)]
    else:
        present = targets == 1
        off = np.where(targets < 0, 0.0, np.where(present, 1 - probabilities, probabilities))
        worst = off.argmax(axis=1)
        share, shows = off[at, worst], present[at, worst]
        wrong = share > 0.5
        words = [
            (f"{'' if shown else 'no '}{classes[w]}", f"{'no ' if shown else ''}{classes[w]}")
            for w, shown in zip(worst, shows, strict=True)
        ]
    order = [i for i in np.argsort(-share, kind="stable").tolist() if wrong[i]][:count]
    if not order:
        return []
    images = images_of(run)
    place = _places(images, rows)
    seen = []
    for i in order:
        truth, said_of_it = words[i]
        image = square(images.decode(place[i]))
        seen.append(Seen(image, str(rows["keys"][i]), truth, said_of_it, float(share[i])))
    return seen


def masks_seen(run: Path, rows: Rows, count: int) -> list[Seen]:
    """``count`` images at even distances from the lowest Dice to the highest, with their masks drawn over them."""
    dice = dice_of_images(rows)
    order = np.argsort(dice, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    model = load_finetuned(str(run))
    images = model.config.data.open("test")
    labels, place = labels_of(images, "mask", model.classes), _places(images, rows)
    seen = []
    for i in chosen.tolist():
        data = model.config.data
        image, truth = prepare(
            images.decode(place[i]),
            labels.target(images, place[i]),
            model.image_size,
            data.evaluation,
            data.evaluation_share,
        )
        drawn = square(overlay(image, predicted_mask(model, image), truth))
        seen.append(Seen(drawn, str(rows["keys"][i]), "", "", float(dice[i])))
    return seen


def dice_of_images(rows: Rows) -> NDArray[np.float64]:
    """[M]: 2 |A and B| / (|A| + |B|), mean over the classes but the first; 1 where neither mask shows any of them."""
    both, each = rows["intersection"][:, 1:], rows["predicted"][:, 1:] + rows["truth"][:, 1:]
    there = each > 0
    share = np.where(there, 2 * both / np.maximum(each, 1), 0)
    return np.where(there.any(axis=1), share.sum(axis=1) / np.maximum(there.sum(axis=1), 1), 1.0)


@torch.no_grad()
def predicted_mask(model: FinetunedModel, image: Tensor) -> Tensor:
    """[H, W] of a uint8 image [3, H, W] as it is evaluated: by windows where it isn't of the model's size."""
    ready = normalise(image[None], model.backbone.mean, model.backbone.std)
    size = model.image_size
    logits = (
        model.logits(ready)
        if image.shape[1:] == (size, size)
        else sliding_logits(model.logits, ready, crop=size, patch_size=model.backbone.patch_size)
    )
    return model.task.predictions(model.task.probabilities(logits))[0]


def images_of(run: Path) -> PackedImages:
    """Raises UsageError or DataError where they are no longer there."""
    return load(FinetuneConfig, run / CONFIG).data.open("test")


def _places(images: PackedImages, rows: Rows) -> list[int]:
    """The number in ``images`` of each row."""
    numbers = {key: number for number, key in enumerate(images.keys)}
    keys = [str(key) for key in rows["keys"]]
    if gone := [key for key in keys if key not in numbers]:
        raise UsageError(
            f"the test images are others than those that were judged: {len(gone)} of {len(keys)} are gone, as {gone[0]}"
        )
    return [numbers[key] for key in keys]


def draw_errors(seen: list[Seen], path: Path) -> None:
    """Images with what is true and what was said."""
    _draw(seen, [f"true: {short(s.truth)}\n{short(s.said)} {100 * s.share:.0f} %" for s in seen], path)


def draw_masks(seen: list[Seen], path: Path) -> None:
    """Images with their masks and Dice."""
    _draw(seen, [f"Dice {s.share:.2f}" for s in seen], path)


def _draw(seen: list[Seen], titles: list[str], path: Path) -> None:
    columns = min(len(seen), COLUMNS)
    lines = -(-len(seen) // columns)
    with canvas(
        path, 1.75 * columns + 0.4, (1.75 + 0.2 * (titles[0].count("\n") + 1)) * lines + 0.3
    ) as figure:
        cells = [axes for line in grid(figure, lines, columns) for axes in line]
        for axes in cells:
            bare(axes)
        for axes, image, title in zip(cells, pixels([s.image for s in seen]), titles, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(title, fontsize=9, loc="center", fontweight="normal")
