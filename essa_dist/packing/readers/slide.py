"""Whole-slide images as tiles of one size and one resolution, those with tissue, row by row.

Shapes: tiles [size, size, 3].
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from essa_dist.errors import UsageError
from essa_dist.packing.frame import Frame
from essa_dist.packing.readers.values import otsu
from essa_dist.settings import Config

THUMBNAIL = 2048
"""Pixels of the longer side of the picture in which tissue is looked for."""
MIN_SATURATION = 0.05
"""Glass and its shading stay below it, on the scale 0..1, whatever Otsu's threshold."""
SCANNERS = ("is_svs", "is_ndpi", "is_scn", "is_bif", "is_philips")
"""What tifffile calls the files of scanners."""


class SlideConfig(Config):
    """How a slide is cut. Its label and overview pictures are never read."""

    size: int = Field(default=256, ge=16)
    """Pixels of a tile's side. What is left over at the right and lower edges is not used."""
    mpp: float = Field(default=0.5, gt=0)
    """Microns per pixel of the tiles; 0.5 is what is called 20x. Tiles of the next finer level are reduced to it."""
    level: int | None = Field(default=None, ge=0)
    """A level of the pyramid, 0 the finest, taken as it is; in place of mpp, for slides that don't tell theirs."""
    min_tissue: float = Field(default=0.25, ge=0, le=1)
    """Smallest share of tissue in a tile. Tissue is coloured: its saturation is above Otsu's threshold of the slide,
    and above 0.05. 0 takes every tile."""


class _Grid(NamedTuple):
    level: int
    scale: float  # finest-level pixels for a pixel of the level
    step: float  # pixels of the level for a tile's side
    mpp: float | None  # of the tiles


def is_slide(path: Path) -> bool:
    """Whether a TIFF is a whole-slide image: of a scanner, or tiled with smaller copies of itself."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            if any(getattr(tiff, name) for name in SCANNERS):
                return True
            first = tiff.pages[0].aspage()
            return bool(first.is_tiled and tiff.series and len(tiff.series[0].levels) > 1)
    except Exception:  # whatever is wrong with it, the reader of TIFF will say it
        return False


def read(path: Path, config: SlideConfig) -> Iterator[Frame]:
    """The tiles with tissue. UsageError where tiffslide is missing, ValueError where the resolution isn't known."""
    try:
        from tiffslide import TiffSlide
    except ImportError as error:
        raise UsageError("whole-slide images need tiffslide: pip install 'essa-dist[slides]'") from error
    with TiffSlide(path) as slide:
        grid = _grid(slide, config)
        tissue = _tissue(slide) if config.min_tissue else None
        width, height = slide.level_dimensions[grid.level]
        side = round(grid.step)
        for row in range(int(height / grid.step)):
            for column in range(int(width / grid.step)):
                x, y = round(column * grid.step * grid.scale), round(row * grid.step * grid.scale)
                if tissue is not None and _share(tissue, slide, x, y, grid) < config.min_tissue:
                    continue
                region = slide.read_region((x, y), grid.level, (side, side), as_array=True)
                yield Frame(
                    pixels=_resize(region[..., :3], config.size),
                    part=f"x{x:06d}_y{y:06d}",
                    lossy=True,
                    about={
                        "level": grid.level,
                        "x": x,
                        "y": y,
                        **({"mpp": grid.mpp} if grid.mpp is not None else {}),
                    },
                )


def _grid(slide: Any, config: SlideConfig) -> _Grid:
    scales = slide.level_downsamples
    told = slide.properties.get("tiffslide.mpp-x")
    finest = float(told) if told else None
    if config.level is not None:
        if config.level >= len(scales):
            raise ValueError(f"slide.level={config.level}: this slide has levels 0 to {len(scales) - 1}")
        scale = scales[config.level]
        mpp = finest * scale if finest is not None else None
        return _Grid(config.level, scale, float(config.size), mpp)
    if finest is None:
        raise ValueError("the slide doesn't tell its microns per pixel: set slide.level, e.g. slide.level=0")
    if finest > config.mpp * 1.1:
        raise ValueError(
            f"the slide has {finest:g} microns per pixel, slide.mpp={config.mpp:g} is finer: set a larger one"
        )
    # A level may be a little coarser than asked: scanners' 0.5 is 0.4965 or 0.5034.
    level = max(i for i, scale in enumerate(scales) if finest * scale <= config.mpp * 1.1)
    step = config.size * config.mpp / (finest * scales[level])
    if abs(step - config.size) < 0.02 * config.size:
        return _Grid(level, scales[level], float(config.size), finest * scales[level])
    return _Grid(level, scales[level], step, config.mpp)


def _tissue(slide: Any) -> NDArray[np.bool_]:
    """Where there is tissue, on a small picture of the slide."""
    small = slide.get_thumbnail((THUMBNAIL, THUMBNAIL)).convert("RGB")
    saturation = np.asarray(small.convert("HSV"))[..., 1] / 255
    found: NDArray[np.bool_] = saturation > max(otsu(saturation), MIN_SATURATION)
    return found


def _share(tissue: NDArray[np.bool_], slide: Any, x: int, y: int, grid: _Grid) -> float:
    width, height = slide.dimensions
    across, down = tissue.shape[1] / width, tissue.shape[0] / height
    side = grid.step * grid.scale
    left, top = int(x * across), int(y * down)
    right = max(left + 1, round((x + side) * across))
    bottom = max(top + 1, round((y + side) * down))
    return float(tissue[top:bottom, left:right].mean())


def _resize(region: NDArray[Any], size: int) -> NDArray[np.uint8]:
    if region.shape[:2] == (size, size):
        return np.ascontiguousarray(region)
    shrunk = Image.fromarray(np.ascontiguousarray(region)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(shrunk)
