"""Raster files are kept byte for byte where what is decoded later is what the reader saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from essa_dist.data.pixels import read_stored
from essa_dist.packing.frame import Frame
from essa_dist.packing.readers import ReadConfig, read_frames
from essa_dist.packing.readers.raster import upright

imagecodecs = pytest.importorskip("imagecodecs")
H, W = 11, 7


def read(path: Path) -> Frame:
    (frame,) = read_frames(path, ReadConfig())
    return frame


def assert_decodes_to_its_pixels(frame: Frame) -> None:
    assert frame.as_is is not None
    bits = 8 * frame.pixels.dtype.itemsize
    stored = read_stored(frame.as_is[1], bits=bits, size=frame.pixels.shape[:2])
    grey = frame.pixels.ndim == 2 and stored.ndim == 3
    np.testing.assert_array_equal(stored, frame.pixels[..., None].repeat(3, 2) if grey else frame.pixels)


def noise(*shape: int, top: int = 256, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(len(shape) + top).integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_any_mode_of_eight_bits_is_kept(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(H, W, 3)).convert(mode).save(path)
    frame = read(path)
    assert frame.as_is == ("png", path.read_bytes())
    assert frame.pixels.ndim == (2 if mode in ("1", "L", "LA") else 3)
    assert_decodes_to_its_pixels(frame)


@pytest.mark.parametrize(("bits", "scale"), [(2, 85), (4, 17)])
def test_shallow_grey_is_spread_over_eight_bits(tmp_path: Path, bits: int, scale: int) -> None:
    values = noise(H, W, top=2**bits)
    path = tmp_path / "a.png"
    Image.fromarray(values, "L").save(path, bits=bits)
    path.write_bytes(_png(values, bits))
    frame = read(path)
    np.testing.assert_array_equal(frame.pixels, values * scale)
    assert_decodes_to_its_pixels(frame)


def _png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of less than 8 bits, after the PNG specification: Pillow writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    each = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits_is_exact_and_kept_unless_it_has_alpha(tmp_path: Path, channels: int) -> None:
    values = noise(H, W, channels, top=65536, dtype=np.uint16).squeeze()
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(values))
    frame = read(path)
    expected = values[..., 0] if channels == 2 else values[..., :3] if channels == 4 else values
    np.testing.assert_array_equal(frame.pixels, expected)
    assert (frame.as_is is not None) == (channels in (1, 3))
    if frame.as_is:
        assert_decodes_to_its_pixels(frame)


def test_real_slices_of_sixteen_bits_are_those_of_the_tiff_beside_them(shared: Path) -> None:
    import tifffile

    paths = sorted((shared / "data" / "dicom_samples" / "png16").glob("*.png"))
    assert len(paths) == 6
    for path in paths:
        frame = read(path)
        np.testing.assert_array_equal(frame.pixels, tifffile.imread(path.with_suffix(".tif")))
        assert_decodes_to_its_pixels(frame)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_kept_and_is_lossy(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(H, W, 3)).convert(mode).save(path)
    frame = read(path)
    assert frame.as_is == ("jpg", path.read_bytes())
    assert frame.lossy
    assert_decodes_to_its_pixels(frame)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "deep"])
def test_pictures_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(noise(H, W, top=65536, dtype=np.uint16) if suffix == "deep" else noise(H, W, 3))
    picture.save(path, "png" if suffix == "deep" else None, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    frame = read(path)
    np.testing.assert_array_equal(frame.pixels, expected)
    assert (frame.as_is is not None) == (orientation == 1)


def test_upright_undoes_each_orientation() -> None:
    values = noise(H, W)
    for orientation in range(1, 9):
        image = Image.fromarray(values)
        image.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(upright(values, orientation), ImageOps.exif_transpose(image))


def test_bmp_is_written_anew(tmp_path: Path) -> None:
    values = noise(H, W, 3)
    Image.fromarray(values).save(tmp_path / "a.bmp")
    frame = read(tmp_path / "a.bmp")
    np.testing.assert_array_equal(frame.pixels, values)
    assert frame.as_is is None


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(noise(H, W, 3, top=top)) for top in (256, 255)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="more than one frame"):
        read(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_a_bomb_is_refused_before_its_pixels_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(H, W, 3)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W - 1)
    with pytest.raises(ValueError, match=f"{W}x{H} are more than {H * W - 1} pixels"):
        read(path)


def test_metadata_that_stays_in_the_file_is_flagged_by_kind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"
    exif.get_ifd(0x8825)[1] = "N"
    picture = Image.fromarray(noise(H, W, 3))
    picture.save(tmp_path / "a.jpg", exif=exif, comment=b"Jane Doe")
    picture.save(tmp_path / "b.jpg")
    assert read(tmp_path / "a.jpg").flags == (
        "EXIF author, date or description filled in",
        "EXIF place filled in",
        "comment or text in the file",
    )
    assert read(tmp_path / "b.jpg").flags == ()
