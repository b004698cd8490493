"""Pages of a TIFF keep their values, whatever their type, and grow with brightness."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from essa_dist.packing.frame import Frame
from essa_dist.packing.readers import ReadConfig, read_frames

tifffile = pytest.importorskip("tifffile")
H, W = 11, 7


def read(path: Path) -> list[Frame]:
    return list(read_frames(path, ReadConfig()))


def real(frame: Frame) -> NDArray[np.float64]:
    return frame.slope * frame.pixels.astype(np.float64) + frame.intercept


def noise(dtype: str, *shape: int) -> NDArray[Any]:
    rng = np.random.default_rng(5)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape or (H, W), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"compression": "zlib"}])
def test_grey_of_up_to_sixteen_bits_is_exact(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    values = noise(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    (frame,) = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(real(frame), values)
    assert frame.pixels.dtype.itemsize == values.dtype.itemsize
    assert frame.slope == 1


def test_what_is_white_at_zero_is_turned(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16"):
        values = noise(dtype)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        (frame,) = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(frame.pixels, np.iinfo(dtype).max - values)
        np.testing.assert_array_equal(real(frame), values)


def test_a_page_of_one_bit_is_black_and_white(tmp_path: Path) -> None:
    values = noise("uint8", 16, 24) > 99
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    (frame,) = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(frame.pixels, values)
    assert frame.window == (0, 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colour_is_exact_and_alpha_is_dropped(tmp_path: Path, dtype: str, planes: str, alpha: bool) -> None:
    values = noise(dtype, H, W, 4 if alpha else 3)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values.transpose(2, 0, 1) if planes == "separate" else values,
        photometric="rgb",
        planarconfig=planes,
        extrasamples=["unassalpha"] if alpha else None,
    )
    (frame,) = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(frame.pixels, values[..., :3])
    assert frame.window == (None if dtype == "uint8" else (0, 65535))


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    values = noise("uint8")
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="palette", colormap=colours)
    (frame,) = read(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(frame.pixels, np.asarray(image.convert("RGB")))


def test_floats_are_within_the_stated_error(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (H, W)).astype(np.float32)
    values[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    (frame,) = read(tmp_path / "a.tif")
    known = np.isfinite(values)
    span = values[known].max() - values[known].min()
    assert np.abs(real(frame) - values)[known].max() <= span / 131_070 * 1.001
    assert frame.pixels[0, 0] == 0
    assert frame.window is None


def test_each_page_is_a_frame_but_reduced_ones_are_not(tmp_path: Path) -> None:
    pages = [noise("uint16"), noise("uint16", 5, 3), noise("uint8")]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for number, page in enumerate(pages):
            tiff.write(page, subfiletype=1 if number == 1 else 0)
    frames = read(tmp_path / "a.tif")
    assert [frame.part for frame in frames] == ["p0000", "p0001"]
    for frame, page in zip(frames, (pages[0], pages[2]), strict=True):
        np.testing.assert_array_equal(frame.pixels, page)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_are_upright(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    values = noise("uint8", H, W, 3)
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
    )
    image = Image.fromarray(values)
    image.getexif()[274] = orientation
    (frame,) = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(frame.pixels, ImageOps.exif_transpose(image))


def test_jpeg_inside_gives_the_colours_that_pillow_sees(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(48))[..., None] * np.array([1.0, 0.5, 2.0])
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    (frame,) = read(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        difference = np.abs(frame.pixels.astype(int) - np.asarray(image.convert("RGB")))
    assert difference.max() <= 3
    assert frame.lossy


def test_what_is_neither_grey_nor_rgb_is_refused_with_a_reason(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "five.tif", noise("uint8", H, W, 5), photometric="minisblack", planarconfig="contig"
    )
    Image.fromarray(noise("uint8", H, W, 4), "CMYK").save(tmp_path / "cmyk.tif")
    tifffile.imwrite(tmp_path / "complex.tif", noise("uint8").astype(np.complex64))
    tifffile.imwrite(tmp_path / "stack.tif", noise("uint8", 4, H, W), imagej=True)
    for name, reason in (
        ("five", "5 channels"),
        ("cmyk", "SEPARATED: save it as grey or RGB"),
        ("complex", "complex64"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(tmp_path / f"{name}.tif")
    assert len(read(tmp_path / "stack.tif")) == 4


def test_real_tiffs_of_sixteen_bits_are_exact(shared: Path) -> None:
    paths = sorted((shared / "data" / "dicom_samples" / "png16").glob("*.tif"))
    assert len(paths) == 6
    for path in paths:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read(path)[0].pixels, np.asarray(image))
