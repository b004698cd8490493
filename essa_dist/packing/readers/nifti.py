"""NIfTI: slices of a volume as radiologists look at them, whatever the order in which it is stored.

A segmentation volume beside an image volume is cut by the same settings into slices of the same numbers; a list with
the columns `path` and `mask` pairs files, not volumes: write both as single slices first, e.g. as PNG.

Shapes: volume [X, Y, Z] as stored, then [R, A, S]: indices grow to the patient's right, front and head.
"""

import gzip
import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from essa_dist.packing.frame import Frame
from essa_dist.packing.readers.values import (
    TOP,
    Limits,
    Values,
    Window,
    limits_of,
    otsu,
    percentile_window,
    refuse_bomb,
    store,
    type_limits,
)
from essa_dist.settings import Config

SAMPLES = 2**21
"""Voxels of a volume, evenly spread, that its percentiles and its background are taken from."""
MAX_BYTES = 2**32
"""A zipped volume that is larger is refused before it is unpacked: all of it goes to memory."""
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
SUSPECT = {2: "DICOM", 4: "AFNI", 6: "comment"}
"""Header extensions that may say who it is."""


class NiftiConfig(Config):
    """How a volume becomes slices. Patient's right is on the left of the picture; front, or head, is on top."""

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Which planes."""
    every: int = Field(default=1, ge=1)
    """Every n-th of them, from the first."""
    skip_empty: float = Field(default=0.01, ge=0, lt=1)
    """Slices with a smaller share of foreground are left out; foreground is above Otsu's threshold of the volume. 0
    keeps all."""
    window: Window = "header"
    """What is shown black and white, the same for the whole volume. header: cal_min and cal_max, where they are set,
    else percentiles; full: lowest and highest value; percentile: 0.5 % and 99.5 %; [low, high]: real values, for CT in
    Hounsfield units."""


class _Volume(NamedTuple):
    voxels: Values  # [R, A, S] or [R, A, S, T], a view
    slope: float
    intercept: float
    spacing: tuple[float, ...]  # mm along R, A, S


def read(path: Path, config: NiftiConfig) -> Iterator[Frame]:
    """The slices of a file, those of each point in time after those of the one before. Raises ValueError.

    Integers are stored exactly where they span at most 65536 values, and so are floats that are whole numbers; others
    are quantised once for the file, off by at most 1/131070 of its range.
    """
    import nibabel

    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if zipped else nullcontext(raw) as file:
            image = _open(nibabel, file, zipped)
            volume = _orient(nibabel, image)
        yield from _slices(volume, image.header, config, _flags(image.header))


def _open(nibabel: Any, file: Any, zipped: bool) -> Any:
    head = file.read(8)
    file.seek(0)
    kind = nibabel.Nifti2Image if head[4:8] in (b"n+2\0", b"ni2\0") else nibabel.Nifti1Image
    holder = nibabel.FileHolder(fileobj=file)
    header = kind.header_class.from_fileobj(file, check=False)
    if bytes(header["magic"]).startswith(b"ni"):
        raise ValueError("a NIfTI header whose voxels are in another file: convert the pair to one .nii.gz")
    file.seek(0)
    image = kind.from_file_map({"header": holder, "image": holder})
    shape = image.shape
    if len(shape) < 2 or math.prod(shape[4:]) > 1:
        raise ValueError(f"{len(shape)} dimensions {shape}: 2, 3 or 4 are read")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"voxels of type {image.get_data_dtype()}: integers and floats are read")
    size = math.prod(shape) * image.get_data_dtype().itemsize
    if size > MAX_BYTES and zipped:
        raise ValueError(f"{size} bytes when unzipped, more than {MAX_BYTES}: unzip it first")
    for pair in itertools.combinations(shape[:3], 2):
        refuse_bomb(*pair)
    return image


def _orient(nibabel: Any, image: Any) -> _Volume:
    """Axes turned and swapped to be nearest to right, front, head; nothing is resampled."""
    voxels = np.asanyarray(image.dataobj.get_unscaled())
    voxels = voxels.reshape(tuple(image.shape[:4]) + (1,) * (3 - len(image.shape)))
    orientation = nibabel.orientations.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise ValueError("the affine of the header has an axis of no length: directions are not known")
    spacing = np.zeros(3)
    zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
    spacing[orientation[:, 0].astype(int)] = zooms
    turned = nibabel.orientations.apply_orientation(voxels, orientation)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return _Volume(turned, slope, intercept, tuple(float(size) for size in spacing))


def _slices(volume: _Volume, header: Any, config: NiftiConfig, flags: tuple[str, ...]) -> Iterator[Frame]:
    voxels, axis = volume.voxels, AXES[config.axis]
    some = _sample(voxels)
    limits = _limits(voxels)
    window = _window(volume, some, limits, header, config)
    finite = some[np.isfinite(some)]
    threshold = otsu(finite)
    rows, columns = (volume.spacing[i] for i in ((2, 1), (2, 0), (1, 0))[axis])
    for t in range(voxels.shape[3] if voxels.ndim == 4 else 1):
        for i in range(0, voxels.shape[axis], config.every):
            values = _picture(voxels[..., t] if voxels.ndim == 4 else voxels, axis, i)
            bright = values < threshold if volume.slope < 0 else values > threshold
            if config.skip_empty and bright.mean() < config.skip_empty:
                continue
            stored = store(
                _whole(values, limits),
                limits,
                slope=volume.slope,
                intercept=volume.intercept,
                turn=volume.slope < 0,
            )
            part = f"{'xyz'[axis]}{i:04d}"
            yield Frame(
                pixels=stored.pixels,
                part=f"t{t:04d}_{part}" if voxels.ndim == 4 and voxels.shape[3] > 1 else part,
                slope=stored.slope,
                intercept=stored.intercept,
                window=window,
                about={
                    "plane": config.axis,
                    "slice": i,
                    "slices": voxels.shape[axis],
                    "spacing_y_mm": rows,
                    "spacing_x_mm": columns,
                    "slice_mm": volume.spacing[axis],
                },
                flags=flags,
            )


def _picture(voxels: Values, axis: int, i: int) -> Values:
    """Slice ``i`` of [R, A, S] as [H, W]: top is front (axial) or head, left is the patient's right, or front."""
    plane: Values = np.take(voxels, i, axis=axis)
    return plane[::-1, ::-1].T


def _limits(voxels: Values) -> Limits:
    """See ``store``. A volume of whole numbers in a float type gets integer limits, and so is stored exactly."""
    if voxels.dtype.kind != "f":
        return type_limits(voxels)
    lows_highs, whole = [], True
    for t in range(
        voxels.shape[-1]
    ):  # one plane at a time: a mask of the whole volume would cost as much again
        plane = voxels[..., t]
        finite = np.isfinite(plane)
        if finite.any():
            lows_highs.append(limits_of(plane))
        whole = whole and bool(finite.all()) and bool((plane == np.rint(plane)).all())
    if not lows_highs:
        raise ValueError("no voxel has a finite value")
    low, high = min(low for low, _ in lows_highs), max(high for _, high in lows_highs)
    return (int(low), int(high)) if whole and high - low <= TOP else (low, high)


def _whole(values: Values, limits: Limits) -> Values:
    exact = values.dtype.kind == "f" and isinstance(limits[0], int)
    return values.astype(np.int64) if exact else values


def _window(
    volume: _Volume, some: Values, limits: Limits, header: Any, config: NiftiConfig
) -> tuple[float, float]:
    if not isinstance(config.window, str):
        return config.window
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if config.window == "header" and low < high:
        return low, high
    if config.window == "full":
        ends = sorted(volume.slope * end + volume.intercept for end in limits_of(volume.voxels))
        return ends[0], max(ends[1], ends[0] + abs(volume.slope))
    return percentile_window(
        store(_whole(some, limits), limits, slope=volume.slope, intercept=volume.intercept)
    )


def _sample(voxels: Values) -> Values:
    """Voxels of the volume, evenly spread."""
    step = max(1, round((voxels.size / SAMPLES) ** (1 / 3)))
    return voxels[::step, ::step, ::step].reshape(-1)


def _flags(header: Any) -> tuple[str, ...]:
    found = {
        f"NIfTI {field} filled in"
        for field in ("descrip", "aux_file", "intent_name", "db_name")
        if field in header and bytes(header[field]).strip(b" \0")
    }
    codes = {extension.get_code() for extension in header.extensions}
    found |= {f"NIfTI header extension ({SUSPECT[code]})" for code in codes & set(SUSPECT)}
    return tuple(sorted(found))
