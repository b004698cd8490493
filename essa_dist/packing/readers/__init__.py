"""Readers of image formats: a file in, a Frame for each of its pictures out. One file a format.

A format is known by the first bytes of a file and never by its name. The packages that decode are imported when a file
needs them.
"""

import importlib
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from essa_dist.errors import EssaError
from essa_dist.packing.frame import Frame
from essa_dist.packing.readers.dicom import DicomConfig
from essa_dist.packing.readers.nifti import NiftiConfig
from essa_dist.packing.readers.slide import SlideConfig
from essa_dist.packing.readers.values import NotWanted, one_line, refuse_special
from essa_dist.settings import Config

HEAD = 560
"""Bytes that tell a format: NIfTI-2 has the longest header."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".dcm", ".dicom", ".ima"),
    *(".nii", ".nii.gz"),
    *(".svs", ".ndpi", ".scn", ".bif"),
)
"""Lower-case endings of the files that a walk over a folder takes; for files without one see `looks_like_image`."""


class ReadConfig(Config):
    """How files are read that leave a choice."""

    dicom: DicomConfig = DicomConfig()
    """DICOM: which window and which frames."""
    nifti: NiftiConfig = NiftiConfig()
    """NIfTI: how a volume is cut into slices."""
    slide: SlideConfig = SlideConfig()
    """Whole-slide images: how they are cut into tiles."""


class Reader(NamedTuple):
    """How a format is known, and who reads it."""

    looks: str
    """What its first bytes are."""
    where: str
    """``module:function(path, settings)``; the settings are those of the reader's name in ReadConfig, if it has any."""


_HERE = __name__
READERS = {
    "dicom": Reader("DICM after 128 bytes, or an element of group 0002 or 0008", f"{_HERE}.dicom:read"),
    "nifti": Reader("n+1 at byte 344 or n+2 at byte 4, also gzipped", f"{_HERE}.nifti:read"),
    "slide": Reader("TIFF with a pyramid of tiles, or of a slide scanner", f"{_HERE}.slide:read"),
    "tiff": Reader("II or MM, then 42 or 43", f"{_HERE}.tiff:read"),
    "raster": Reader("JPEG, PNG, WebP or BMP", f"{_HERE}.raster:read"),
}


def read_frames(path: Path, config: ReadConfig) -> Iterator[Frame]:
    """The pictures of a file, one at a time, in the order of the file.

    Raises ValueError, in one line, where the content is no image or is broken, possibly after some frames; NotWanted,
    one of these, where it is sound and no picture to take; OSError where the file can't be read; UsageError where a
    package or a setting is missing.
    """
    refuse_special(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
    name = kind_of(head)
    if name == "tiff":
        from essa_dist.packing.readers.slide import is_slide

        name = "slide" if is_slide(path) else name
    if name is None:
        raise ValueError("empty file" if not head else "not an image of a known format")
    module, function = READERS[name].where.split(":")
    read = getattr(importlib.import_module(module), function)
    settings = getattr(config, name, None)
    hush()
    try:
        yield from read(path) if settings is None else read(path, settings)
    except (EssaError, NotWanted):
        raise
    except Exception as error:  # a broken file makes decoders raise almost anything
        if isinstance(error, OSError) and error.errno is not None:  # the disk; decoders give no number
            raise
        raise ValueError(one_line(error)) from error


def kind_of(head: bytes) -> str | None:
    """Name of the reader for a file that begins with ``head``; None: no image. A slide is ``tiff`` here."""
    if head[:2] == b"\x1f\x8b":
        return "nifti" if _is_nifti(_unzip(head)) else None
    tests = {
        "dicom": _is_dicom(head),
        "nifti": _is_nifti(head),
        "tiff": head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "raster": head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    }
    return next((name for name, found in tests.items() if found), None)


def looks_like_image(path: Path) -> bool:
    """Whether a file is to be packed: by its suffix or, where it has no known one, by its being DICOM.

    Exports of picture archives name their files ``IM0001`` or by numbers with dots. Their directory is left out.
    """
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return True
    if name.startswith((".", "dicomdir")):
        return False
    try:
        refuse_special(path)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return False
    return head[128:132] == b"DICM" or (not path.suffix and _is_dicom(head))


def _is_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    # Without a preamble it begins with an element of group 0002 or 0008: number, then its type or a length.
    little, big = head[:2] in (b"\x02\0", b"\x08\0"), head[:2] in (b"\0\x02", b"\0\x08")
    typed = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return len(head) > 132 and ((typed and (little or big)) or (little and 0 < length < 1024))


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def _unzip(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, HEAD)
    except zlib.error:
        return b""


def hush() -> None:
    """Keep what libraries think of a file off the screen: what matters raises. Cheap, and safe in threads."""
    warnings.filterwarnings("ignore", module=r"pydicom|nibabel|tifffile|tiffslide")
    for name in ("pydicom", "nibabel.global", "tifffile", "tiffslide"):
        logger = logging.getLogger(name)
        if logger.level != logging.CRITICAL:  # to set it clears the caches of all loggers
            logger.setLevel(logging.CRITICAL)
