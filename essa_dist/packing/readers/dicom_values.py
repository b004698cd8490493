"""From the numbers of a DICOM file to stored values and a window.

Shapes: values [H, W] or [H, W, 3]. Sources: PS3.3, C.7.6.3 (pixels), C.11.1 (modality LUT) and C.11.2 (VOI LUT).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.packing.readers.dicom_header import numbers
from essa_dist.packing.readers.values import (
    TOP,
    Limits,
    Stored,
    Values,
    Window,
    full_window,
    limits_of,
    percentile_window,
    store,
    type_limits,
)


class _Voi(NamedTuple):
    """The linear ends of what the header says, in real values."""

    window: tuple[float, float] | None
    falls: bool = False  # a VOI LUT that makes high values dark


def colour(
    values: Values, ds: Any, palette: NDArray[np.uint8] | None
) -> tuple[Stored, tuple[float, float] | None]:
    """RGB; ``palette``: [entries, 3], for values that are numbers of its entries."""
    if palette is not None:
        first = int(ds.RedPaletteColorLookupTableDescriptor[1])
        return Stored(palette.take(values.astype(np.intp) - first, axis=0, mode="clip"), 1.0, 0.0), None
    if not str(ds.PhotometricInterpretation).startswith(("RGB", "YBR_")) or values.shape[2:] != (3,):
        samples = values.shape[2] if values.ndim == 3 else 1
        raise ValueError(f"colours of type {ds.PhotometricInterpretation} in {samples} channels are not read")
    limits = _limits(values, ds) if values.dtype.itemsize <= 2 else (0, int(np.iinfo(values.dtype).max))
    stored = store(values, limits)
    full = (float(limits[0]), float(limits[1]))
    return stored, None if full == (0.0, 255.0) else full


def read_palette(ds: Any) -> NDArray[np.uint8] | None:
    """The colours of a palette, [entries, 3]. Made for a screen, they become 8-bit ones whatever their depth."""
    from pydicom.pixels.processing import apply_color_lut

    if str(ds.PhotometricInterpretation) != "PALETTE COLOR":
        return None
    count, first, bits = (int(value) for value in ds.RedPaletteColorLookupTableDescriptor)
    if not ds.original_encoding[1]:  # pydicom takes tables for little-endian
        for element in (f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")):
            data = ds.get(element)
            if isinstance(data, bytes) and len(data) == 2 * (count or TOP + 1):
                ds[element].value = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    table = apply_color_lut(np.arange(first, first + (count or TOP + 1)), ds)[:, :3]
    if table.dtype != np.uint8 and bits > 8:
        table = (table.astype(np.uint32) + 128) // 257
    return np.asarray(table, dtype=np.uint8)


def grey(
    values: Values, ds: Any, number: int, window: Window, window_number: int
) -> tuple[Stored, tuple[float, float]]:
    """Values of frame ``number`` (from 0) that grow with brightness, and the window over their real ones."""
    keep = _not_padding(values, ds)
    slope, intercept = _rescale(ds, number)
    if ds.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        values, slope, intercept = apply_modality_lut(values, ds), 1.0, 0.0
        limits = type_limits(values)
    else:
        limits = _limits(values, ds)
    voi = _voi(ds, number, window_number)
    turn = (str(ds.PhotometricInterpretation) == "MONOCHROME1") ^ (slope < 0) ^ voi.falls
    stored = store(values, limits, slope=slope, intercept=intercept, turn=turn)
    if keep is not None and keep.any():
        # What lies outside the scanner's field is background, whatever its value: as dark as the darkest of the rest.
        stored.pixels[~keep] = stored.pixels[keep].min()
    if not isinstance(window, str):
        return stored, window
    if window == "header" and voi.window is not None:
        return stored, voi.window
    if window == "full":
        return stored, full_window(stored, keep)
    if window == "header" and stored.pixels.dtype == np.uint8:
        ends = sorted(slope * limit + intercept for limit in limits)
        return stored, (ends[0], ends[1])
    return stored, percentile_window(stored, keep)


def _limits(values: Values, ds: Any) -> Limits:
    """What BitsStored can hold, so that all pictures of a series are stored alike; else what the values are."""
    found = limits_of(values)
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return found
    bits = int(ds.get("BitsStored") or 8 * values.dtype.itemsize)
    low = -(1 << bits - 1) if values.dtype.kind == "i" else 0
    high = low + (1 << bits) - 1
    return (low, high) if low <= found[0] and found[1] <= high else type_limits(values)


def _not_padding(values: Values, ds: Any) -> NDArray[np.bool_] | None:
    """Where pixels were measured; None: everywhere. PixelPaddingValue (to PixelPaddingRangeLimit) marks the others."""
    first = numbers(ds, "PixelPaddingValue")
    if not first or values.dtype.kind not in "iu":
        return None
    last = numbers(ds, "PixelPaddingRangeLimit") or first
    bits = 8 * values.dtype.itemsize
    # The type of these elements is that of the pixels; files exist that write it unsigned for signed ones.
    wrap = (1 << bits) if values.dtype.kind == "i" else 0
    low, high = sorted(v - wrap if wrap and v >= wrap // 2 else v for v in (first[0], last[0]))
    keep: NDArray[np.bool_] = values != low if low == high else (values < low) | (values > high)
    return None if keep.all() else keep


def functional_group(ds: Any, number: int, keyword: str) -> Any:
    """An item of the functional groups of an enhanced file: of the frame, else shared by all; None: no such."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or []
        found = items[at].get(keyword) if at < len(items) else None
        if found:
            return found[0]
    return None


def _rescale(ds: Any, number: int) -> tuple[float, float]:
    for source in (functional_group(ds, number, "PixelValueTransformationSequence"), ds):
        slope, intercept = numbers(source, "RescaleSlope"), numbers(source, "RescaleIntercept")
        if slope and intercept and slope[0] != 0:
            return slope[0], intercept[0]
    return 1.0, 0.0


def _voi(ds: Any, number: int, wanted: int) -> _Voi:
    """A VOI LUT comes before a window, as in pydicom. A sigmoid becomes its tangent at the centre."""
    item = (ds.get("VOILUTSequence") or [None])[0]
    if item is not None:
        return _lut_ends(item, little=bool(ds.original_encoding[1]))
    for source in (functional_group(ds, number, "FrameVOILUTSequence"), ds):
        centres, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
        if not centres or not widths:
            continue
        which = wanted - 1 if wanted <= min(len(centres), len(widths)) else 0
        centre, width = centres[which], widths[which]
        if str(source.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR":
            centre, width = centre - 0.5, width - 1  # PS3.3, C.11.2.1.2.1
        if width >= 0 and np.isfinite([centre, width]).all():
            half = max(width, 1e-3) / 2  # a width of 1 is a threshold
            return _Voi((centre - half, centre + half))
    return _Voi(None)


def _lut_ends(item: Any, *, little: bool) -> _Voi:
    """Between which input values the table changes; what it does between them is taken for a straight line."""
    count, first = int(item.LUTDescriptor[0]) or TOP + 1, int(item.LUTDescriptor[1])
    data = item.LUTData
    if isinstance(data, bytes):
        kind = "u1" if len(data) < 2 * count else "<u2" if little else ">u2"
        data = np.frombuffer(data, kind)
    table = np.asarray(data, dtype=np.int64)[:count]
    moves = np.flatnonzero(np.diff(table))
    if not moves.size:
        return _Voi(None)
    ends = float(first + moves[0]), float(first + moves[-1] + 1)
    return _Voi(ends, falls=bool(table[-1] < table[0]))
