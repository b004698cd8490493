"""Which pictures the page shows and measures: by fixed rules, the same at every call."""

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from essa_dist.data.index import NONE
from essa_dist.errors import EssaError
from essa_dist.packing.report.record import Packed, Rows

log = logging.getLogger(__name__)

SHEET = 36
"""Pictures of the contact sheet."""
SIDE = 224
"""Pixels of a picture on the page."""
PIXELS = 48_000_000
"""Pixels decoded for the statistics: some seconds."""
LEAST, MOST = 16, 400
"""Pictures decoded for the statistics, whatever their size."""

Pixels = NDArray[np.uint8]


class Shown(NamedTuple):
    """One picture of the page."""

    row: int
    pixels: Pixels  # [h, w, 3], the long side SIDE
    mask: Pixels | None  # [h, w], numbers of mask classes


def sheet_rows(packed: Packed, count: int = SHEET) -> list[int]:
    """The first sample of each class in each split, then the second of each, and so on, in the order of storage.

    Splits take turns for each class. Where there are more groups than pictures, groups at even distances.
    """
    groups = [
        members
        for _, rows in packed.labels()
        for split in range(len(packed.manifest.splits))
        if len(members := rows[packed.split[rows] == split])
    ]
    groups = [groups[i] for i in _evenly(len(groups), min(count, len(groups)))]
    chosen: dict[int, None] = {}  # a sample of several classes is shown once
    for turn in range(max((len(members) for members in groups), default=0)):
        for members in groups:
            if turn < len(members) and len(chosen) < count:
                chosen[int(members[turn])] = None
        if len(chosen) >= count:
            break
    return sorted(chosen, key=lambda row: (packed.split[row], row))


def statistics_rows(packed: Packed) -> Rows:
    """Rows at even distances over the whole set, as many as PIXELS allow."""
    size = np.asarray(packed.index.height, np.int64) * np.asarray(packed.index.width, np.int64)
    mean = max(float(size.mean()), 1.0) if len(size) else 1.0
    count = int(np.clip(PIXELS / mean, LEAST, MOST))
    return _evenly(len(packed.index), min(count, len(packed.index)))


def look(packed: Packed, row: int) -> Shown | None:
    """The picture of a row in its window; None, with a warning, where it can't be read."""
    try:
        pixels = packed.images.decode(row).permute(1, 2, 0).numpy()
        mask = None if packed.index.mask_offset[row] == NONE else packed.images.mask(row)
    except (EssaError, OSError) as error:
        log.warning("not shown: %s", " ".join(str(error).split()))
        return None
    return Shown(row, _reduced(pixels), None if mask is None else _reduced(mask.numpy(), nearest=True))


def grey_values(packed: Packed, rows: Rows) -> tuple[NDArray[np.int64], int]:
    """Histogram [3, 256] of the shown values of ``rows``, and how many of them could be read."""
    counts = np.zeros((3, 256), np.int64)
    read = 0
    for row in rows.tolist():
        try:
            pixels = packed.images.decode(row).numpy()
        except (EssaError, OSError) as error:
            log.warning("not counted: %s", " ".join(str(error).split()))
            continue
        counts += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels])
        read += 1
    return counts, read


def _evenly(total: int, count: int) -> Rows:
    """``count`` positions of ``total`` at even distances."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * max(count, 1))


def _reduced(pixels: Pixels, nearest: bool = False) -> Pixels:
    """With a long side of SIDE; small pictures are enlarged, so that all are as large on the page."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if nearest or scale > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how))
