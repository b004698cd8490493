"""The DALI pipeline: encoded images and the numbers of their views in, uint8 crops out. It holds no random state.

The order of the changes and their formulas are those of ``augment.py``; colour: see ``arguments.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.colour import BLUR_RADIUS
from essa_dist.data.dali.arguments import names
from essa_dist.data.views import N_GLOBAL, POLICIES, CropConfig
from essa_dist.errors import UsageError

DEPTH = 2
"""Batches in the pipeline at once: one is handed on while the next is made."""

Node = Any
"""A step of the graph; DALI carries no types."""


def check_installed() -> None:
    """Raise UsageError where DALI can't be imported."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"data.decoder=dali needs NVIDIA DALI, which can't be imported ({error}): pip install "
            "nvidia-dali-cuda130 (nvidia-dali-cuda120 for CUDA 12), or use data.decoder=torchvision"
        ) from error


def build(
    config: CropConfig,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    source: Callable[[], list[Any]],
) -> Any:
    """A pipeline, ready to run, with one output [B, 3, s, s] for each view; on the CPU where ``device_id`` is None.

    ``source`` gives the encoded images of a batch, then the arrays of ``arguments.flat``, and raises StopIteration
    at the end.
    """
    from nvidia.dali import fn, pipeline_def

    wanted = [names(POLICIES[config.policy], view) for view in range(N_GLOBAL + config.n_local)]

    def views() -> tuple[Node, ...]:
        encoded, *numbers = fn.external_source(source=source, num_outputs=1 + sum(map(len, wanted)))
        images = decode(encoded, on_gpu=device_id is not None)
        if config.resize is not None:
            images = _resize(images, config.resize)
        outputs, given = [], iter(numbers)
        for view, needed in enumerate(wanted):
            size = config.global_size if view < N_GLOBAL else config.local_size
            outputs.append(_view(images, size, {name: next(given) for name in needed}))
        return tuple(outputs)

    pipeline = pipeline_def(views, enable_conditionals=True)(
        batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=DEPTH
    )
    pipeline.build()
    return pipeline


def decode(encoded: Node, on_gpu: bool) -> Node:
    """RGB [H, W, 3] as Pillow decodes it: chroma smoothed, EXIF's orientation left alone."""
    from nvidia.dali import fn, types

    return fn.decoders.image(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,  # ANY_DATA ends the process on grey JPEG
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )


def _view(images: Node, size: int, given: dict[str, Node]) -> Node:
    """One crop [3, size, size] of each image, changed as the numbers ``given`` say."""
    from nvidia.dali import fn

    # Cut before resized: a resize of a region would look at the pixels around it.
    crop = fn.slice(
        images,
        given["anchor"],
        given["shape"],
        axes=(0, 1),
        normalized_anchor=False,
        normalized_shape=False,
    )
    pixels = _resize(crop, size)
    flips = {
        axis: given[name] for axis, name in (("horizontal", "hflip"), ("vertical", "vflip")) if name in given
    }
    if flips:
        pixels = fn.flip(pixels, **{"horizontal": 0, "vertical": 0, **flips})
    if "angle" in given:
        pixels = _quarter_turn(pixels, size, given["angle"])
    if "matrix" in given:
        pixels = _recolour(pixels, given["matrix"], given.get("of_mean"))
    if "sigma" in given and given["sigma"] > 0:
        pixels = fn.gaussian_blur(pixels, sigma=given["sigma"], window_size=2 * BLUR_RADIUS + 1)
    if "solarise" in given and given["solarise"] > 0:
        pixels = _solarise(pixels)
    return fn.transpose(pixels, perm=[2, 0, 1])


def _resize(images: Node, size: int) -> Node:
    from nvidia.dali import fn, types

    return fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)


def _quarter_turn(pixels: Node, size: int, angle: Node) -> Node:
    from nvidia.dali import fn, types

    return fn.rotate(pixels, angle=angle, size=[size, size], interp_type=types.INTERP_NN)


def _recolour(pixels: Node, matrix: Node, of_mean: Node | None) -> Node:
    """A p + C m, clipped and rounded to uint8."""
    from nvidia.dali import fn, types

    changed = fn.coord_transform(pixels, M=matrix)
    if of_mean is not None:
        mean = fn.reductions.mean(pixels, axes=[0, 1], keep_dims=True)
        # Added, not the T of the transform: that would have to be on the CPU.
        changed = changed + fn.coord_transform(mean, M=of_mean)
    return fn.cast(changed, dtype=types.UINT8)


def _solarise(pixels: Node) -> Node:
    """Values of at least 128 inverted: the lesser of v and 255 - v."""
    from nvidia.dali import math, types

    return math.min(pixels, types.Constant(255, types.UINT8) - pixels)


def refused(images: Sequence[NDArray[np.uint8]], *, device_id: int | None) -> list[int]:
    """Which of these encoded images DALI fails to decode, one by one: a failure ends a pipeline, not saying whose it is."""
    from nvidia.dali import Pipeline, fn

    def pipeline() -> Any:
        made = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
        with made:
            made.set_outputs(decode(fn.external_source(name="encoded"), on_gpu=device_id is not None))
        made.build()
        return made

    found, running = [], pipeline()
    for i, image in enumerate(images):
        try:
            running.feed_input("encoded", [image])
            running.run()
        except RuntimeError:
            found.append(i)
            running = pipeline()
    return found
