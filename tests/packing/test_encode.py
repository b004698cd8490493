"""What is stored: exact where nothing has to change, reduced like the oracle, shown through the right window."""

import io

import numpy as np
import pytest
from PIL import Image

from essa_dist.data.pixels import Bounds, decode, read_stored, show
from essa_dist.packing.encode import Encoding, encode, find_bounds, reduce
from essa_dist.packing.frame import Frame

KEEP = Encoding(image_size=None, quality=None, depth="keep")


def ramp(height: int = 30, width: int = 44, channels: int = 0, top: int = 4000) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    smooth = np.add.outer(np.arange(height) * 3.0, np.arange(width) * 7.0)
    values = smooth[..., None] * np.arange(1, channels + 1) if channels else smooth
    return np.broadcast_to(values / values.max() * top, shape).astype(np.uint16)


@pytest.mark.parametrize("channels", [0, 3])
def test_16_bit_values_are_stored_exactly(channels: int) -> None:
    pixels = ramp(channels=channels, top=65535)
    encoded, _ = encode(Frame(pixels), KEEP)
    assert (encoded.suffix, encoded.bits, encoded.channels) == ("png", 16, channels or 1)
    stored = read_stored(encoded.image, bits=16, size=(encoded.height, encoded.width))
    np.testing.assert_array_equal(stored, pixels)


def test_a_window_in_real_values_becomes_bounds_of_stored_ones_even_where_the_scale_is_turned() -> None:
    pixels = ramp()
    plain = Frame(pixels, slope=2.0, intercept=-1000.0, window=(-200.0, 600.0))
    assert find_bounds(plain, pixels) == Bounds(400.0, 800.0)
    turned = Frame(pixels, slope=-2.0, intercept=1000.0, window=(-200.0, 600.0))
    assert find_bounds(turned, pixels) == Bounds(200.0, 600.0)


def test_without_a_window_the_percentiles_of_16_bits_are_shown_and_8_bits_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 60_000, (101, 97), dtype=np.uint16)
    low, high = np.percentile(pixels, (0.5, 99.5), method="inverted_cdf")
    assert find_bounds(Frame(pixels), pixels) == Bounds(low, high)
    small = (pixels >> 8).astype(np.uint8)
    assert find_bounds(Frame(small), small) == Bounds(0, 255)
    two_values = np.zeros((50, 50), np.uint16)
    two_values[0, 0] = 900
    assert find_bounds(Frame(two_values), two_values) == Bounds(0, 900)


def test_the_histogram_is_of_what_training_sees() -> None:
    frame = Frame(ramp(channels=3), window=(300.0, 2500.0))
    encoded, shown = encode(frame, KEEP)
    seen = decode(encoded.image, bits=16, size=(encoded.height, encoded.width), bounds=encoded.bounds).numpy()
    np.testing.assert_array_equal(seen, np.moveaxis(shown, 2, 0))
    for channel in range(3):
        np.testing.assert_array_equal(
            encoded.histogram[channel], np.bincount(seen[channel].ravel(), minlength=256)
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 3])
def test_reduction_is_lanczos_rounded_once(dtype: type, channels: int) -> None:
    rng = np.random.default_rng(1)
    # Noise of full contrast would overshoot, and Pillow clips 8 bits between its two passes.
    top = np.iinfo(dtype).max
    pixels = rng.integers(top // 3, top * 2 // 3, (60, 90, channels or 1), dtype=dtype)
    pixels = pixels if channels else pixels[:, :, 0]
    small = reduce(pixels, 20)
    assert small.shape[:2] == (20, 30)
    planes = np.moveaxis(np.atleast_3d(pixels), 2, 0)
    exact = [Image.fromarray(p.astype(np.float32)).resize((30, 20), Image.Resampling.LANCZOS) for p in planes]
    expected = np.stack([np.asarray(p) for p in exact], axis=2)
    assert small.dtype == dtype
    assert np.abs(np.atleast_3d(small) - expected).max() <= (0.501 if dtype == np.uint16 else 1.5)


def test_overshoot_of_the_reduction_is_clipped_and_does_not_wrap() -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[:, 32:] = 65535
    small = reduce(pixels, 16).astype(int)
    assert (np.diff(small, axis=1) >= -2000).all()
    assert (small.min(), small.max()) == (0, 65535)


def test_depth_8_shows_for_good_and_keeps_the_meaning_of_the_values() -> None:
    frame = Frame(ramp(), slope=0.5, intercept=-1024.0, window=(-900.0, 600.0))
    deep, shown = encode(frame, KEEP)
    flat, _ = encode(frame, KEEP._replace(depth=8))
    assert (flat.bits, flat.bounds) == (8, Bounds(0, 255))
    stored = np.asarray(Image.open(io.BytesIO(flat.image)))
    np.testing.assert_array_equal(stored, shown)
    inside = (shown > 0) & (shown < 255)
    real = frame.pixels * deep.slope + deep.intercept
    again = stored * flat.slope + flat.intercept
    assert np.abs(again - real)[inside].max() <= 1500 / 255 / 2 + 1e-3
    assert flat.about["window"] == deep.about["window"] == [-900.0, 600.0]


def test_the_bytes_of_a_file_are_kept_unless_something_changes() -> None:
    pixels = show(ramp(), Bounds(0, 4000))
    frame = Frame(pixels, as_is=("webp", b"bytes of the file"), lossy=True)
    assert encode(frame, KEEP)[0].image == b"bytes of the file"
    assert encode(frame, KEEP._replace(image_size=30))[0].image == b"bytes of the file"
    for change in ({"image_size": 29}, {"quality": 80}):
        encoded, _ = encode(frame, KEEP._replace(**change))
        assert (encoded.suffix, encoded.image[:3]) == ("jpg", b"\xff\xd8\xff")


def test_plain_pictures_have_nothing_to_say_and_others_their_window() -> None:
    assert encode(Frame(show(ramp(), Bounds(0, 4000))), KEEP)[0].about == {}
    about = encode(Frame(ramp(), slope=2.0, intercept=-8.0, about={"Modality": "CT"}), KEEP)[0].about
    assert about["about"] == {"Modality": "CT"}
    assert (about["slope"], about["intercept"]) == (2.0, -8.0)
    assert about["window"][0] < about["window"][1]
