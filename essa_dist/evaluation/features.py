"""Frozen features of every image of a set, in its order.

Shapes: n images, B batch, H x W pixels, S the side that the model sees, N patches, C feature channels.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from essa_dist.backbones import Backbone
from essa_dist.data.batch import normalise
from essa_dist.data.shards import PackedImages
from essa_dist.errors import DataError, DivergedError, UsageError
from essa_dist.evaluation.ranks import chunks, gather_rows, own_chunks
from essa_dist.heads.pooled import Pooling
from essa_dist.heads.pooled import pool as pool_tokens

Progress = Callable[[int, int], None]  # images done, images in all


class FeatureSet(NamedTuple):
    """Features on the CPU, in the order of the images."""

    features: Tensor  # [n, C] fp32; [n, 2C] when pooled as cls+mean
    labels: Tensor  # [n] int64 class index; -1 throughout if the set has no labels
    keys: tuple[str, ...]  # n sample keys


def extract_features(
    backbone: Backbone,
    images: PackedImages,
    *,
    image_size: int,
    crop: float = 1.0,
    pooling: Pooling = "cls",
    batch_size: int = 64,
    workers: int = 2,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    progress: Progress | None = None,
    spread: bool = False,
) -> FeatureSet:
    """Tokens after the final norm, pooled. Leaves ``backbone`` on ``device`` and in eval mode.

    ``workers`` threads decode and resize, one batch ahead; the result does not depend on their number.
    ``spread``: over the ranks of a launcher, all of which must call it. Rank r takes batches r, r + W, ... of the same
    ones that one process has, so every rank gets what one process would have got, bit for bit on like machines.
    Raises ``UsageError`` for an ``image_size`` that the patches don't tile, ``DataError`` naming the key of an
    image that can't be read (none is skipped), ``DivergedError`` if a feature is not finite.
    """
    check_image_size(image_size, backbone)
    backbone.eval().to(device)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext()
    batches = own_chunks(len(images), batch_size) if spread else chunks(len(images), batch_size)
    width = backbone.embed_dim * (2 if pooling == "cls+mean" else 1)
    pooled = [torch.empty(0, width)]  # a rank may have no batch at all
    with torch.inference_mode(), autocast:
        for batch_B3SS in _batches(images, batches, image_size, crop, workers):
            tokens = backbone(normalise(batch_B3SS.to(device), backbone.mean, backbone.std))
            pooled.append(pool_tokens(tokens, pooling).float().cpu())
            if progress is not None:
                progress(sum(map(len, pooled)), sum(map(len, batches)))
    features = torch.cat(pooled)  # outside inference mode, so that a probe can be trained on them
    if spread:
        features = gather_rows(features, len(images), batch_size)
    _refuse_non_finite(features, images, backbone)
    return FeatureSet(features, _labels(images), tuple(images.keys))


def check_image_size(image_size: int, backbone: Backbone) -> None:
    """Raise ``UsageError`` unless ``image_size`` is a positive multiple of the patch size."""
    patch = backbone.patch_size
    if image_size < patch or image_size % patch:
        below = max(image_size // patch * patch, patch)
        nearest = f"{below} or {below + patch}"
        raise UsageError(
            f"image_size={image_size} is not a multiple of the patch size {patch} of {backbone.name}: use {nearest}"
        )


def prepare_image(image_3HW: Tensor, image_size: int, crop: float = 1.0) -> Tensor:
    """The central ``crop`` share of each side, resized to uint8 [3, S, S].

    The whole share is seen, so an image that is not square is squeezed rather than cut.
    """
    height, width = image_3HW.shape[-2:]
    cut = transforms.center_crop(image_3HW, [max(1, round(height * crop)), max(1, round(width * crop))])
    size = [image_size, image_size]
    resized: Tensor = transforms.resize(cut, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized


def _batches(
    images: PackedImages, batches: Sequence[range], image_size: int, crop: float, workers: int
) -> Iterator[Tensor]:
    """uint8 [B, 3, S, S] of each batch in order; at most two are held."""
    own = threading.local()  # each thread reads by file descriptors of its own

    def start_thread() -> None:
        own.images = copy.copy(images)

    def load(index: int) -> Tensor:
        return prepare_image(_decode(own.images, index), image_size, crop)

    def submit(batch: Sequence[int]) -> list[Future[Tensor]]:
        return [pool.submit(load, i) for i in batch]

    with ThreadPoolExecutor(workers, initializer=start_thread) as pool:
        coming = submit(batches[0]) if batches else []
        for following in [*batches[1:], ()][: len(batches)]:
            ready, coming = coming, submit(following)
            yield torch.stack([future.result() for future in ready])


def _decode(images: PackedImages, index: int) -> Tensor:
    try:
        return images.decode(index)
    except Exception as error:  # each decoder has its own; the reader needs the key whatever it was
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"image {images.keys[index]!r} of split {images.split!r} can't be read ({reason}): evaluation skips"
            " none, so mend or remove it and pack again"
        ) from error


def _labels(images: PackedImages) -> Tensor:
    if images.labels is None:
        return torch.full((len(images),), -1)
    return torch.as_tensor(images.labels, dtype=torch.int64)


def _refuse_non_finite(features: Tensor, images: PackedImages, backbone: Backbone) -> None:
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise DivergedError(
            f"{backbone.name} gave features that are not finite for {len(bad)} of {len(images)} images, first"
            f" {images.keys[bad[0]]!r}: its weights have diverged or don't belong to it, use an earlier checkpoint"
        )
