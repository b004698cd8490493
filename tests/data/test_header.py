"""A header tells what decoding will give, and refuses what must not be decoded."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from essa_dist.data.header import Meaning, look, read_meaning
from essa_dist.data.pixels import read_stored


def encoded(mode: str, kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("RGB", "JPEG", 3), ("L", "JPEG", 1), ("CMYK", "JPEG", 3), ("RGB", "PNG", 3), ("L", "PNG", 1), ("1", "PNG", 1),
     ("P", "PNG", 3), ("RGBA", "PNG", 3), ("LA", "PNG", 3), ("RGB", "WEBP", 3)],
)  # fmt: skip
def test_eight_bit_images_of_every_mode(mode: str, kind: str, channels: int) -> None:
    data = encoded(mode, kind)
    header = look(data)
    pixels = read_stored(data, bits=8, size=(11, 14))
    assert header[1:] == (11, 14, channels, 8, True)
    grey = bool((pixels == pixels[:, :, :1]).all())
    assert channels == 3 or grey


@pytest.mark.parametrize("shape", [(11, 14), (11, 14, 3)])
def test_sixteen_bit_png(shape: tuple[int, ...]) -> None:
    data = imagecodecs.png_encode(np.ones(shape, np.uint16))
    assert look(data)[1:5] == (11, 14, 1 if len(shape) == 2 else 3, 16)
    assert read_stored(data, bits=16, size=(11, 14)).shape == shape


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bits_with_transparency_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="transparency"):
        look(imagecodecs.png_encode(np.ones((11, 14, channels), np.uint16)))


def test_an_image_that_asks_to_be_turned_is_told() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert not look(encoded("RGB", "JPEG", exif=exif)).upright


def test_several_frames_are_refused() -> None:
    frame = Image.new("RGB", (14, 11), (200, 0, 0))
    with pytest.raises(ValueError, match="more than one frame"):
        look(encoded("RGB", "WEBP", save_all=True, append_images=[frame]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9460, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ValueError, match="pixels"):
        look(b"\x89PNG\r\n\x1a\n" + chunk + idat)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"GIF89a" + bytes(50), b"II*\0" + bytes(50), b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_of_these_kinds_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty file|not an image of a known kind"):
        look(data)


def test_the_window_of_a_json_in_stored_values() -> None:
    meaning = read_meaning({"slope": -2, "intercept": 100, "window": [-300, 20], "about": {}})
    assert meaning == Meaning(-2, 100, -300, 20)
    assert meaning.bounds() == (40, 200)
    assert meaning.bounds((0, 100)) == (0, 50)


@pytest.mark.parametrize(
    "fields",
    [None, [], "x", {}, {"window": "lung"}, {"window": [0, 1]}, {"slope": 0, "intercept": 0, "window": [0, 1]},
     {"slope": 1, "intercept": 0, "window": [1, 0]}, {"slope": 1, "intercept": float("nan"), "window": [0, 1]}],
)  # fmt: skip
def test_a_json_of_another_kind_has_no_window(fields: object) -> None:
    assert read_meaning(fields) is None
