"""Metrics of segmentation: Dice, IoU, HD95 and pixel accuracy, from a few numbers for each image and class.

Those numbers (:func:`mask_rows`) are what ranks exchange; masks never travel. Background, class 0, has its own values
and is in no mean over classes. An image counts for a class that its truth or its prediction shows: where both are
empty there is nothing to measure and it is left out, where one of them is empty Dice and IoU are 0 and HD95 is the
diagonal of the image, the largest distance there can be. Pixels of value IGNORE are in neither mask.
The headline, ``dice``, is the mean over images of each class, then over classes: an image with a large structure counts
as one with a small one. ``*_pooled`` are over all pixels of the set, as one large image.
Shapes: M images, H x W pixels, K classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.metrics.bootstrap import Counts, divide
from essa_dist.evaluation.metrics.judged import Groups, Judged
from essa_dist.evaluation.metrics.rates import Floats
from essa_dist.evaluation.metrics.scores import Scores

IGNORE = 255
"""Value of a mask's pixels that count nowhere."""
ROWS = ("intersection", "predicted", "truth", "hd95")

Mask = NDArray[np.bool_]


def mask_rows(
    predicted_MHW: Tensor, truth_MHW: Tensor, n_classes: int, *, hd95: bool = True
) -> dict[str, Tensor]:
    """``intersection``, ``predicted`` and ``truth`` (pixels) and ``hd95`` (pixels), each [M, K] fp64 on the CPU.

    ``truth_MHW`` has class numbers and IGNORE. HD95 is NaN for the background, where both masks are empty, and
    throughout without ``hd95``. Raises UsageError for masks of different sizes and for other values.
    """
    if predicted_MHW.shape != truth_MHW.shape:
        raise UsageError(
            f"masks predicted {tuple(predicted_MHW.shape)} and true {tuple(truth_MHW.shape)} differ in size:"
            " resize the logits to the truth"
        )
    known = truth_MHW != IGNORE
    wrong = known & ((truth_MHW < 0) | (truth_MHW >= n_classes))
    if wrong.any():
        raise UsageError(
            f"a mask has the value {int(truth_MHW[wrong][0])}: class numbers go from 0 to {n_classes - 1}, {IGNORE} is ignored"
        )
    pairs = confusions(predicted_MHW, truth_MHW, n_classes)
    rows = {
        "intersection": pairs.diagonal(dim1=1, dim2=2),
        "predicted": pairs.sum(dim=1),
        "truth": pairs.sum(dim=2),
    }
    rows = {name: counts.cpu().double() for name, counts in rows.items()}
    rows["hd95"] = torch.full_like(rows["truth"], torch.nan)
    if hd95:
        _fill_hd95(rows, predicted_MHW.masked_fill(~known, IGNORE), truth_MHW)
    return rows


def confusions(predicted_MHW: Tensor, truth_MHW: Tensor, n_classes: int) -> Tensor:
    """Pixels of each true (row) and predicted class of each image, int64 [M, K, K]; IGNORE is in none."""
    n_images, n_rows = len(truth_MHW), n_classes + 1  # the last row is that of IGNORE
    image = torch.arange(n_images, device=truth_MHW.device).view(-1, 1, 1)
    row = image * n_rows + truth_MHW.long().clamp_max(n_classes)
    pairs = row.mul_(n_classes).add_(predicted_MHW).flatten()
    counts = torch.bincount(pairs, minlength=n_images * n_rows * n_classes)
    return counts.view(n_images, n_rows, n_classes)[:, :n_classes]


def _fill_hd95(rows: Mapping[str, Tensor], predicted_MHW: Tensor, truth_MHW: Tensor) -> None:
    predicted, truth = predicted_MHW.cpu().numpy(), truth_MHW.cpu().numpy()
    shown = (rows["predicted"] + rows["truth"]) > 0
    for image, label in shown.nonzero().tolist():
        if label:
            distance = hausdorff95(predicted[image] == label, truth[image] == label)
            rows["hd95"][image, label] = distance


def hausdorff95(one_HW: Mask, other_HW: Mask) -> float:
    """HD95 in pixels: the larger of the 95th percentiles of both directions' distances from surface to surface.

    NaN for two empty masks, the image's diagonal for one. Source: Maier-Hein et al., "Metrics reloaded", arXiv:2206.01653.
    """
    from scipy.spatial import KDTree

    if not one_HW.any() or not other_HW.any():
        return float(np.hypot(*one_HW.shape)) if one_HW.any() or other_HW.any() else float("nan")
    # A tree of surface pixels, not a distance transform of the image: 2 to 10 times as fast on nuclei.
    # From 1: where denormals are flushed to zero, as in training, scipy's tree crashes on a coordinate of 0.
    one, other = (1 + np.argwhere(surface(mask)) for mask in (one_HW, other_HW))
    return max(
        float(np.percentile(KDTree(to).query(start)[0], 95)) for start, to in ((one, other), (other, one))
    )


def surface(mask_HW: Mask) -> Mask:
    """Pixels of the mask with one of their four neighbours outside it, or outside the image."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner


class JudgedMasks(Judged):
    """Rows of M images, those of all ranks put together."""

    def __init__(self, rows: Mapping[str, Tensor], classes: Sequence[str]) -> None:
        """``rows``: [M, K] each, of :func:`mask_rows`. Raises UsageError where there is no image, or K is another number."""
        found = [rows[name].cpu().double().numpy() for name in ROWS]
        self.both, self.predicted, self.truth, self.hd95 = found
        self.classes, self.n = tuple(classes), len(self.truth)
        self.images_K = (self.truth > 0).sum(axis=0)
        if self.n < 1 or self.truth.shape[1] != len(self.classes):
            raise UsageError(
                f"rows of {self.n} images and {self.truth.shape[1]} classes for the classes {', '.join(classes)}:"
                " give at least one image, and as many classes"
            )
        either = self.predicted + self.truth - self.both
        self.by_image = {
            "dice": divide(2 * self.both, self.predicted + self.truth),
            "iou": divide(self.both, either),
            "hd95": self.hd95,
        }

    def of_classes(self, counts_MR: Counts) -> dict[str, Floats]:
        """Every metric of each class, [K, R]; NaN for a class that no image shows or predicts."""
        found = {}
        for name, value_MK in self.by_image.items():
            known_MK = ~np.isnan(value_MK)
            found[name] = divide(np.where(known_MK, value_MK, 0).T @ counts_MR, known_MK.T @ counts_MR)
        both, predicted, truth = (part.T @ counts_MR for part in (self.both, self.predicted, self.truth))
        found["dice_pooled"] = divide(2 * both, predicted + truth)
        found["iou_pooled"] = divide(both, predicted + truth - both)
        return found

    def __call__(self, counts_MR: Counts) -> dict[str, Floats]:
        """Means over the classes that some image shows, background aside, and the share of right pixels, [R] each."""
        shown_KR = (self.truth.T @ counts_MR > 0)[1:]
        values = {}
        for name, value_KR in self.of_classes(counts_MR).items():
            usable_KR = shown_KR & ~np.isnan(value_KR[1:])
            values[name] = divide(np.where(usable_KR, value_KR[1:], 0).sum(axis=0), usable_KR.sum(axis=0))
        right, pixels = (part.sum(axis=1) @ counts_MR for part in (self.both, self.truth))
        return values | {"pixel_accuracy": divide(right, pixels)}

    def values(self) -> dict[str, float]:
        return {name: float(value_R[0]) for name, value_R in self(np.ones((self.n, 1))).items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        of_classes = self.of_classes(np.ones((self.n, 1)))
        return {
            name: {"n": int(self.images_K[k])} | {m: float(v_KR[k, 0]) for m, v_KR in of_classes.items()}
            for k, name in enumerate(self.classes)
        }

    def score(self, *, resamples: int = 0, seed: int = 0, patients: Groups | None = None) -> Scores:
        scores = super().score(resamples=resamples, seed=seed, patients=patients)
        unseen = [name for name, n in zip(self.classes, self.images_K, strict=True) if not n]
        return replace(scores, left_out=tuple(unseen))
