"""Views as the arrays of numbers that a DALI pipeline takes.

Shapes: V views of each of B samples. Colour changes between cutting and blurring are linear in the pixel p and the
crop's mean colour m, but for their clipping, so any sequence of them is one pair of 3x3 matrices: p' = A p + C m.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.colour import LUMA
from essa_dist.data.views import N_GLOBAL, Change, CropConfig, Policy, View

Array = NDArray[np.number]
Matrix = NDArray[np.float64]

GREY: Matrix = np.ones((3, 1)) * np.asarray(LUMA)[None]
"""Colour to grey, in every channel."""


def names(policy: Policy, view: int) -> list[str]:
    """The arguments that view number ``view`` of a policy needs: work that it never asks for is left out."""
    kind = min(view, N_GLOBAL)
    needed = {
        "anchor": True,
        "shape": True,
        "hflip": policy.hflip > 0,
        "vflip": policy.vflip > 0,
        "angle": policy.rotate,
        "matrix": policy.jitter > 0 or policy.grayscale > 0,
        "of_mean": policy.jitter > 0 and policy.contrast > 0,
        "sigma": policy.blur[kind] > 0,
        "solarise": policy.solarise[kind] > 0,
    }
    return [name for name, wanted in needed.items() if wanted]


def arguments(views: Sequence[Sequence[View]]) -> dict[str, Array]:
    """[V, B, ...] of every argument, from the V views of each of B samples."""
    by_view = list(zip(*views, strict=True))
    colours = [[colour_matrices(view.jitter, view.grey) for view in batch] for batch in by_view]

    def table(rows: list[list[object]], dtype: type[np.int32] | type[np.float32]) -> Array:
        return np.asarray(rows, dtype=dtype)

    return {
        "anchor": table([[view.box[:2] for view in batch] for batch in by_view], np.int32),
        "shape": table([[view.box[2:] for view in batch] for batch in by_view], np.int32),
        "hflip": table([[view.hflip for view in batch] for batch in by_view], np.int32),
        "vflip": table([[view.vflip for view in batch] for batch in by_view], np.int32),
        "angle": table([[90 * view.quarter_turns for view in batch] for batch in by_view], np.float32),
        "matrix": table([[matrix for matrix, _ in batch] for batch in colours], np.float32),
        "of_mean": table([[of_mean for _, of_mean in batch] for batch in colours], np.float32),
        "sigma": table([[view.sigma or 0 for view in batch] for batch in by_view], np.float32),
        "solarise": table([[view.solarise for view in batch] for batch in by_view], np.int32),
    }


def flat(arrays: dict[str, Array], config: CropConfig, policy: Policy) -> list[Array]:
    """The [B, ...] arrays of all views, in the order in which the pipeline takes them."""
    return [arrays[name][view] for view in range(N_GLOBAL + config.n_local) for name in names(policy, view)]


def colour_matrices(jitter: Sequence[Change], grey: bool) -> tuple[Matrix, Matrix]:
    """A and C of the changes in their order, and of turning grey after them.

    Differs from doing them one by one where a step would have clipped what a later one brings back, and by
    :func:`turn_hue`.
    """
    whole, of_mean = np.eye(3), np.zeros((3, 3))
    for name, amount in jitter:
        step, step_of_mean = np.eye(3), np.zeros((3, 3))
        if name == "brightness":
            step = amount * step
        elif name == "contrast":
            step, step_of_mean = amount * step, (1 - amount) * GREY
        elif name == "saturation":
            step = amount * step + (1 - amount) * GREY
        else:
            step = turn_hue(amount)
        # The mean colour before this step is (whole + of_mean) m.
        whole, of_mean = step @ whole, step @ of_mean + step_of_mean @ (whole + of_mean)
    return (GREY @ whole, GREY @ of_mean) if grey else (whole, of_mean)


def turn_hue(turn: float) -> Matrix:
    """Rotation of the RGB cube about its grey axis (Rodrigues' formula).

    Grey stays grey and every hue moves by ``turn`` within 0.01, as in HSV. What is kept is the mean of the channels,
    where HSV keeps the largest. It is nearer to HSV than the rotation in YIQ of DALI's own hue, which keeps the luma.
    """
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn) / math.sqrt(3)
    rest = (1 - cosine) / 3
    same, up, down = cosine + rest, rest + sine, rest - sine
    return np.array([[same, down, up], [up, same, down], [down, up, same]])
