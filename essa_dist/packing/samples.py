"""One source file to its samples, or to the reasons why there are none. This is what runs in worker processes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from essa_dist.errors import EssaError
from essa_dist.packing.encode import Encoded, Encoding, encode
from essa_dist.packing.frame import Frame
from essa_dist.packing.guards import Fingerprint, fingerprint
from essa_dist.packing.masks import encode_mask, read_mask
from essa_dist.packing.readers import ReadConfig, read_frames
from essa_dist.packing.readers.values import NotWanted, refuse_special
from essa_dist.packing.source import Source


class Recipe(NamedTuple):
    """The settings that samples depend on."""

    read: ReadConfig
    encoding: Encoding
    blank: float
    mask_classes: int


class Made(NamedTuple):
    """A sample, but for what the source says of it."""

    part: str
    encoded: Encoded
    mask: bytes | None
    fingerprint: Fingerprint
    flags: tuple[str, ...]


class Refused(NamedTuple):
    """A sample, or what remained of a file, that is left out."""

    part: str
    reason: str
    harmless: bool = False
    """Nothing is wrong with the file: it is blank, a duplicate, or no picture to take."""


def make_samples(source: Source, how: Recipe) -> Iterator[Made | Refused]:
    """The samples of one file, in its order. A file that breaks midway gives those before, then a reason."""
    try:
        mask = None if source.mask is None else _mask(source.mask, how.mask_classes)
        for frame in read_frames(source.path, how.read):
            if mask is not None and frame.part:
                raise ValueError("it has one mask and several frames: save one mask for each image")
            yield _one(source, frame, mask, how)
    except EssaError:  # a package or a setting is missing: that's not the file's fault
        raise
    except Exception as error:  # a broken file makes decoders raise almost anything
        yield Refused("", reason(error, source.path), harmless=isinstance(error, NotWanted))


def _one(source: Source, frame: Frame, mask: NDArray[np.uint8] | None, how: Recipe) -> Made | Refused:
    try:
        encoded, shown = encode(frame, how.encoding)
        known = fingerprint(shown)
        if known.spread < how.blank:
            return Refused(
                frame.part,
                f"blank: its grey values have a standard deviation below {how.blank:g}",
                harmless=True,
            )
        height, width = frame.pixels.shape[:2]
        stored = None if mask is None else encode_mask(mask, (height, width), (encoded.height, encoded.width))
    except Exception as error:
        return Refused(frame.part, reason(error, source.path))
    return Made(frame.part, encoded, stored, known, frame.flags)


def _mask(path: Path, classes: int) -> NDArray[np.uint8]:
    try:
        refuse_special(path)
        return read_mask(path, classes)
    except FileNotFoundError:
        raise ValueError("its mask is missing") from None
    except ValueError as error:
        raise error if str(error).startswith("its mask") else ValueError(f"its mask: {error}") from error
    except Exception as error:
        raise ValueError(f"its mask can't be read: {reason(error, path)}") from error


def reason(error: Exception, path: Path) -> str:
    """One line, the same on every machine and in every run: it is written to the packed set."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error.__cause__ or error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels: cut it into tiles first"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(str(path), "it").split())
    # Pillow names the buffer, which differs every time.
    return "not an image" if "cannot identify image file" in text else text or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """While this is open, what libraries think of a file stays off the screen: what matters raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
