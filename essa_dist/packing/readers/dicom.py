"""DICOM: every frame with the values of its device, the window of its header, and nothing that identifies.

Shapes: values [H, W] or [H, W, 3]. Sources: PS3.3, C.7.6.3 (pixels), C.11.1 and C.11.2 (modality and VOI).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from essa_dist.packing.frame import Frame
from essa_dist.packing.readers.codecs import LOSSY, NAME, plugin_for
from essa_dist.packing.readers.dicom_header import about_frame, about_picture, code_of, flags_of, patient_of
from essa_dist.packing.readers.dicom_values import colour, functional_group, grey, read_palette
from essa_dist.packing.readers.values import NotWanted, Values, Window, refuse_bomb
from essa_dist.settings import Config

__all__ = ["DicomConfig", "patient_of", "read"]

STREAM_FROM = 64 * 2**20
"""Bytes of pixel data from which on frames are read from the file one by one, not all at once."""
MAPS = ("SEG", "RTDOSE")
"""Modalities whose pixels are maps over other pictures."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class DicomConfig(Config):
    """What is taken from a DICOM file. Values are kept whole whatever the window: it can be changed later."""

    window: Window = "header"
    """What is shown black and white. header: VOI LUT or window of the header, else percentiles (8 bits: all); full:
    lowest and highest value of the picture; percentile: its 0.5 % and 99.5 %; [low, high]: real values, for CT in
    Hounsfield units. Colour has no window."""
    window_number: int = Field(default=1, ge=1)
    """Which of several windows of the header, from 1; the first where there are fewer."""
    frames: Literal["all", "middle"] | Annotated[int, Field(ge=1)] = "all"
    """Of a file of several frames: all, the middle one, or every n-th from the first."""
    modalities: tuple[str, ...] = ()
    """Only files of these modalities, e.g. `[CT, MR]`. Empty: all but SEG and RTDOSE, maps over other pictures."""


def read(path: Path, config: DicomConfig) -> Iterator[Frame]:
    """The frames of a file, one at a time. Raises ValueError, or what pydicom raises."""
    ds = _open(path, config)
    count = max(1, int(ds.get("NumberOfFrames") or 1))
    chosen = _choose(count, config.frames)
    about, flags = about_picture(ds), flags_of(ds)
    syntax = str(ds.file_meta.TransferSyntaxUID)
    lossy = syntax in LOSSY or str(ds.get("LossyImageCompression", "")) == "01"
    is_grey = str(ds.PhotometricInterpretation).startswith("MONOCHROME")
    palette = read_palette(ds)
    window: tuple[float, float] | None
    for number, values in zip(chosen, _decode(path, ds, chosen, count), strict=False):
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if is_grey:
            stored, window = grey(values, ds, number, config.window, config.window_number)
        else:
            stored, window = colour(values, ds, palette)
        yield Frame(
            pixels=stored.pixels,
            part=f"f{number + 1:04d}" if count > 1 else "",
            lossy=lossy,
            slope=stored.slope,
            intercept=stored.intercept,
            window=window,
            about={
                **about,
                **about_frame(ds, functional_group(ds, number, "PixelMeasuresSequence")),
                **({"frame": number + 1} if count > 1 else {}),
            },
            flags=flags,
        )


def _open(path: Path, config: DicomConfig) -> Any:
    """The dataset, its pixels still in the file where they are large; ValueError where there are none to take."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    ds = dcmread(path, force=True, defer_size=STREAM_FROM)
    modality = code_of(ds, "Modality") or ""
    if "DirectoryRecordSequence" in ds:
        raise NotWanted("a DICOMDIR, the list of other files")
    if not any(keyword in ds for keyword in PIXELS):
        # A picture that was cut off tells its size before its pixels; a report or a plan has none.
        kind = ValueError if "Rows" in ds else NotWanted
        raise kind(f"DICOM without pixels{f' ({modality})' if modality else ''}")
    missing = [keyword for keyword in ("Rows", "Columns", "PhotometricInterpretation") if not ds.get(keyword)]
    if missing:
        raise ValueError(f"DICOM without {missing[0]}")
    if modality not in config.modalities if config.modalities else modality in MAPS:
        raise NotWanted(f"modality {modality or 'not given'}: left out by read.dicom.modalities")
    if "TransferSyntaxUID" not in ds.file_meta:  # no file header: what could be read can't be compressed
        implicit, little = ds.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    refuse_bomb(int(ds.Columns), int(ds.Rows))
    return ds


def _choose(count: int, frames: str | int) -> Sequence[int]:
    if frames == "middle":
        return [count // 2]
    return range(0, count, frames if isinstance(frames, int) else 1)


def _decode(path: Path, ds: Any, chosen: Sequence[int], count: int) -> Iterator[Values]:
    """The chosen frames as stored in the file, colour as RGB."""
    from pydicom.pixels.utils import get_expected_length, iter_pixels

    syntax = ds.file_meta.TransferSyntaxUID
    indices = None if len(chosen) == count else list(chosen)
    plugin = plugin_for(str(syntax))
    element = ds.get_item("PixelData", keep_deferred=True)
    if element is None or element.value is not None:
        frames = iter_pixels(ds, indices=indices, decoding_plugin=plugin)
    else:
        there = min(element.length, path.stat().st_size - element.value_tell)
        if not syntax.is_encapsulated and there < get_expected_length(ds):
            raise ValueError(f"{there} bytes of pixels, expected {get_expected_length(ds)}: truncated")
        frames = iter_pixels(path, indices=indices, decoding_plugin=plugin, transfer_syntax_uid=syntax)
    try:
        yield from frames
    except RuntimeError as error:  # pydicom's, around the reasons of our plugin
        raise ValueError(str(error).rsplit(f"{NAME}: ", 1)[-1]) from error
