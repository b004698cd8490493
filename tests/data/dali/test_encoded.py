"""What DALI is given: only what it decodes as Pillow does; the rest is decoded on the host, or replaced."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from essa_dist.data.dali.encoded import as_ppm, dali_decodes


def encode(mode: str, kind: str, **settings: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((20, 12), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.convert(mode).save(sink, kind, **settings)
    return sink.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_ordinary_pictures_are_for_dali(mode: str, kind: str) -> None:
    assert dali_decodes(encode(mode, kind), (12, 20))


@pytest.mark.parametrize(
    "encoded",
    [
        encode("CMYK", "JPEG"),
        encode("RGB", "JPEG", keep_rgb=True),
        encode("RGB", "JPEG")[:-2],
        encode("P", "PNG"),
        encode("RGBA", "PNG"),
        encode("RGB", "TIFF"),
        encode("RGB", "PNG")[:20],
        b"no image",
        b"",
    ],
    ids=["cmyk", "jpeg of rgb", "cut off", "palette", "alpha", "tiff", "half a header", "text", "empty"],
)
def test_the_unusual_and_the_broken_are_not(encoded: bytes) -> None:
    assert not dali_decodes(encoded, (12, 20))


def test_a_picture_of_another_size_than_the_index_says_is_not() -> None:
    assert not dali_decodes(encode("RGB", "PNG"), (20, 12))


def test_ppm_holds_the_very_pixels() -> None:
    pixels = torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8)
    with Image.open(io.BytesIO(as_ppm(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())
