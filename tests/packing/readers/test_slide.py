"""A slide is cut into tiles of one size and resolution, those with tissue, in a fixed order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from essa_dist.packing.frame import Frame
from essa_dist.packing.readers import ReadConfig, read_frames
from essa_dist.packing.readers.slide import is_slide

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("tiffslide")
HEIGHT, WIDTH = 640, 896
TISSUE = (slice(128, 384), slice(320, 640))  # rows, columns of the finest level


def read(path: Path, **settings: Any) -> list[Frame]:
    return list(read_frames(path, ReadConfig.model_validate({"slide": settings})))


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Glass, a little shaded and tinted, with a rectangle of pink and violet grains."""
    rng = np.random.default_rng(0)
    glass = np.add.outer(np.linspace(235, 242, HEIGHT), np.linspace(0, 4, WIDTH))
    slide = glass[..., None] - np.array([0, 8, 3])
    shape = slide[TISSUE].shape
    slide[TISSUE] = np.array([200, 110, 170]) + rng.integers(-30, 30, (*shape[:2], 1))
    return slide.astype(np.uint8)


@pytest.fixture(scope="module")
def path(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels of tiles at 0.25 microns per pixel, without the name of a slide."""
    return write(tmp_path_factory.mktemp("slides") / "slide.jpg", picture, mpp=0.25)


def write(path: Path, picture: NDArray[np.uint8], mpp: float | None) -> Path:
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, subifds=2, **options)
        for factor in (2, 4):
            small = picture.reshape(HEIGHT // factor, factor, WIDTH // factor, factor, 3).mean((1, 3))
            tiff.write(small.astype(np.uint8), subfiletype=1, tile=(64, 64), photometric="rgb", metadata=None)
    return path


def test_a_pyramid_of_tiles_is_a_slide_and_a_plain_tiff_is_none(path: Path, tmp_path: Path) -> None:
    assert is_slide(path)
    tifffile.imwrite(tmp_path / "plain.svs", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    assert not is_slide(tmp_path / "plain.svs")


def test_tiles_of_a_level_are_the_pixels_of_the_slide_row_by_row(
    path: Path, picture: NDArray[np.uint8]
) -> None:
    tiles = read(path, level=0, size=128, min_tissue=0)
    assert [tile.part for tile in tiles] == [
        f"x{x:06d}_y{y:06d}" for y in range(0, HEIGHT, 128) for x in range(0, WIDTH, 128)
    ]
    for tile in tiles:
        x, y = int(tile.about["x"]), int(tile.about["y"])
        np.testing.assert_array_equal(tile.pixels, picture[y : y + 128, x : x + 128])


def test_tiles_without_tissue_are_left_out(path: Path) -> None:
    tiles = read(path, level=0, size=64, min_tissue=0.9)
    expected = {(x, y) for y in range(128, 384, 64) for x in range(320, 640, 64)}
    assert {(tile.about["x"], tile.about["y"]) for tile in tiles} == expected


def test_tissue_of_a_part_of_a_tile_counts_as_that_part(path: Path) -> None:
    # 160-pixel tiles: the one at (320, 0) has 32 of its 160 rows in the tissue.
    for least, inside in ((0.15, True), (0.25, False)):
        tiles = read(path, level=0, size=160, min_tissue=least)
        assert ((320, 0) in {(tile.about["x"], tile.about["y"]) for tile in tiles}) == inside


def test_the_level_nearest_to_the_resolution_is_taken(path: Path, picture: NDArray[np.uint8]) -> None:
    (tile, *_) = read(path, mpp=0.5, size=64, min_tissue=0.9)
    assert (tile.about["level"], tile.about["mpp"]) == (1, pytest.approx(0.5))
    x, y = int(tile.about["x"]), int(tile.about["y"])
    expected = picture[y : y + 128, x : x + 128].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(tile.pixels - expected).max() <= 1


def test_between_two_levels_the_finer_one_is_reduced(path: Path, picture: NDArray[np.uint8]) -> None:
    tiles = read(path, mpp=0.75, size=64, min_tissue=0)
    assert {(tile.about["level"], tile.about["mpp"], tile.pixels.shape) for tile in tiles} == {
        (1, 0.75, (64, 64, 3))
    }
    assert len(tiles) == (HEIGHT // 192) * (WIDTH // 192)
    for tile in tiles:
        x, y = int(tile.about["x"]), int(tile.about["y"])
        field = picture[y : y + 192, x : x + 192]
        assert np.abs(tile.pixels.mean((0, 1)) - field.mean((0, 1))).max() < 2


def test_a_slide_that_does_not_tell_its_resolution_needs_a_level(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = write(tmp_path / "a.tif", picture, mpp=None)
    with pytest.raises(ValueError, match=r"set slide\.level"):
        read(path)
    assert len(read(path, level=2, size=32)) > 0
    with pytest.raises(ValueError, match="levels 0 to 2"):
        read(path, level=3)


def test_a_slide_coarser_than_asked_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.25 microns per pixel, slide\.mpp=0\.1 is finer"):
        read(path, mpp=0.1)
