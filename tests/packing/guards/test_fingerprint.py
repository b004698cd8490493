"""A fingerprint tells pictures apart by what they show, not by how they are stored."""

import pickle

import numpy as np
from PIL import Image
from scipy.fft import dctn

from essa_dist.packing.guards import FINGERPRINT, fingerprint, table_of


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_grey_pixels_stored_as_rgb_are_the_same_picture() -> None:
    grey = pixels(0, 40, 50)
    assert fingerprint(np.repeat(grey[:, :, None], 3, axis=2)) == fingerprint(grey)
    assert fingerprint(grey[:, :, None]) == fingerprint(grey)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    rgb[7, 11, 2] ^= 1
    assert fingerprint(rgb).exact != fingerprint(grey).exact


def test_the_same_bytes_in_another_shape_are_another_picture() -> None:
    grey = pixels(1, 32, 48)
    assert fingerprint(grey.reshape(48, 32)).exact != fingerprint(grey).exact


def test_a_view_that_is_not_contiguous_is_hashed_by_its_pixels() -> None:
    grey = pixels(2, 40, 80)
    assert fingerprint(grey[:, ::2]) == fingerprint(grey[:, ::2].copy())


def test_the_perceptual_hash_is_that_of_a_whole_cosine_transform() -> None:
    for seed, shape in ((3, (90, 70)), (4, (33, 200, 3)), (5, (20, 20))):
        one = pixels(seed, *shape)
        small = Image.fromarray(one).convert("L").resize((32, 32), Image.Resampling.BOX)
        low = dctn(np.asarray(small, np.float64), norm="ortho")[:8, :8].ravel()
        expected = int("".join(str(int(value > np.median(low[1:]))) for value in low), 2)
        assert fingerprint(one).perceptual == expected


def test_spread_is_the_deviation_of_the_luma_and_tells_what_is_blank() -> None:
    one = pixels(6, 37, 53, 3)
    luma = np.asarray(Image.fromarray(one).convert("L"), np.float64)
    assert abs(fingerprint(one).spread - luma.std()) < 1e-9
    assert not fingerprint(one).blank
    flat = np.full((64, 64), 200, np.uint8)
    flat[:32] = 201
    assert fingerprint(flat).blank


def test_rows_of_a_table_hold_what_the_fingerprints_say() -> None:
    prints = [pickle.loads(pickle.dumps(fingerprint(pixels(seed, 48, 64)))) for seed in range(3)]
    rows = table_of(prints)
    assert rows.dtype == FINGERPRINT
    for row, one in zip(rows, prints, strict=True):
        assert row["exact"].tobytes() == one.exact
        assert int(row["perceptual"]) == one.perceptual
        assert row["thumbnail"].tobytes() == one.thumbnail
