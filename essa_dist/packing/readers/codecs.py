"""Decoders of compressed DICOM pixels, as one plugin of pydicom that puts the best ones in order.

Without it pydicom tries them in the order of its own list: its decoder of RLE in Python first, GDCM before OpenJPEG. It
has none for JPEG of 12 bits, and none looks at the size that a compressed stream claims. pylibjpeg-rle is not used: a
broken file makes it panic past every handler of exceptions, and kills the process.
"""

import itertools
import struct
import threading
from importlib import import_module
from typing import Any

NAME = "essa"
RLE = "1.2.840.10008.1.2.5"
_PYDICOM = "pydicom.pixels.decoders."
ORDER: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2.4.50": (_PYDICOM + "pillow",),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": (_PYDICOM + "pillow", __name__),  # JPEG extended: 8 bits, 12 bits
    "1.2.840.10008.1.2.4.57": (__name__, _PYDICOM + "gdcm"),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": (__name__, _PYDICOM + "gdcm"),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": (_PYDICOM + "pyjpegls",),  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": (_PYDICOM + "pyjpegls",),  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": (_PYDICOM + "pylibjpeg", _PYDICOM + "pillow"),  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": (_PYDICOM + "pylibjpeg", _PYDICOM + "pillow"),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": (_PYDICOM + "pylibjpeg",),  # High-throughput JPEG 2000 lossless
    "1.2.840.10008.1.2.4.202": (_PYDICOM + "pylibjpeg",),  # ... with progression by resolution
    "1.2.840.10008.1.2.4.203": (_PYDICOM + "pylibjpeg",),  # ... lossy
    RLE: (__name__,),  # pydicom's own decoder takes what is missing for black
}
"""Transfer syntax: modules with pydicom's plugin functions, the one to try first in front."""
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
"""Transfer syntaxes that always lose something; of the others LossyImageCompression tells."""

_J2K = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 stream, then of its size
DECODER_DEPENDENCIES = dict.fromkeys(ORDER, ("numpy",))  # pydicom asks for it
_lock = threading.Lock()


def is_available(uid: str) -> bool:
    """Whether pydicom may use this module for a transfer syntax."""
    return uid in ORDER


def plugin_for(uid: str) -> str:
    """Name of the plugin to ask pydicom for, registered; empty: pydicom's own choice."""
    from pydicom.pixels.decoders.base import get_decoder

    if uid not in ORDER:
        return ""
    decoder = get_decoder(uid)
    with _lock:
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, (__name__, "decode_frame"))
    return NAME


def decode_frame(src: bytes, runner: Any) -> bytes | bytearray:
    """The pixels of one compressed frame; ``runner``: pydicom's DecodeRunner, which knows the header.

    Raises ValueError where the stream holds a picture of another size than the header says, RuntimeError with the
    reasons of all decoders where none can read it.
    """
    size = stream_size(src)
    if size is not None and size != (runner.columns, runner.rows):
        raise ValueError(
            f"the compressed picture has {size[0]}x{size[1]} pixels, the header says {runner.columns}x{runner.rows}"
        )
    reasons = []
    for module_name in ORDER[str(runner.transfer_syntax)]:
        module = import_module(module_name)
        if module_name != __name__ and not module.is_available(runner.transfer_syntax):
            reasons.append(f"{module_name.removeprefix(_PYDICOM)}: not installed")
            continue
        try:
            pixels: bytes | bytearray = module._decode_frame(src, runner)
            return pixels
        except Exception as error:  # a broken stream makes decoders raise almost anything
            name = "imagecodecs" if module_name == __name__ else module_name.removeprefix(_PYDICOM)
            reasons.append(f"{name}: {error}")
    raise RuntimeError("; ".join(reasons))


def _decode_frame(src: bytes, runner: Any) -> bytes:
    """RLE, and JPEG of any precision, lossy or lossless, by libjpeg-turbo 3."""
    import imagecodecs

    if str(runner.transfer_syntax) == RLE:
        runner.set_option("planar_configuration", 1)
        width = runner.bits_allocated // 8
        return _decode_rle(src, runner.rows * runner.columns, runner.samples_per_pixel, width)
    # The same colour space in and out: components come as they are, and pydicom converts them as the header says.
    same = "RGB" if runner.samples_per_pixel > 1 else None
    pixels = imagecodecs.jpeg8_decode(src, colorspace=same, outcolorspace=same)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytes(pixels.tobytes())


def _decode_rle(src: bytes, pixels: int, samples: int, width: int) -> bytes:
    """PS3.5, annex G: a segment for each byte of each sample, the high byte first. Little-endian, sample after sample.

    imagecodecs has this as one call, but a broken header makes that one end the process.
    """
    import imagecodecs
    import numpy as np

    count, *offsets = struct.unpack("<16I", src[:64])
    starts = [*offsets[: samples * width], len(src)]
    if count != samples * width or starts[0] < 64 or starts != sorted(starts):
        raise ValueError(f"its header has {count} segments, expected {samples * width}, one after the other")
    planes = []
    for start, stop in itertools.pairwise(starts):
        plane = np.frombuffer(imagecodecs.packbits_decode(src[start:stop]), np.uint8)
        if len(plane) < pixels:
            raise ValueError(f"a segment has {len(plane)} pixels, expected {pixels}")
        planes.append(plane[:pixels])
    stacked = np.stack(planes).reshape(samples, width, pixels)[:, ::-1]
    return stacked.transpose(0, 2, 1).tobytes()


def stream_size(src: bytes) -> tuple[int, int] | None:
    """Width and height as a JPEG, JPEG-LS or JPEG 2000 stream tells them; None: it doesn't (RLE)."""
    boxed = (
        src[4:8] == b"jP  "
    )  # JPEG 2000 in a file format, which DICOM doesn't allow and some devices write
    start = src.find(_J2K, 0, 4096) if boxed else 0
    if start >= 0 and src.startswith(_J2K, start) and len(src) >= start + 24:  # ITU-T T.800, A.5.1
        right, bottom, left, top = struct.unpack_from(">4I", src, start + 8)
        return right - left, bottom - top
    if src[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(src) and src[at] == 0xFF:
        marker = src[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if frame or marker == 0xF7:  # ITU-T T.81, B.2.2 and T.87, C.2.2
            height, width = struct.unpack(">2H", src[at + 5 : at + 9])
            return (width, height) if height else None
        at += 2 + int(struct.unpack(">H", src[at + 2 : at + 4])[0])
    return None
