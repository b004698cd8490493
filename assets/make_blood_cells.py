"""Make `assets/blood_cells` from the 8-class blood cell images: `python assets/make_blood_cells.py SOURCE OUT`.

SOURCE holds one folder of 224 px images per class. Every split takes the same number of each class; no image is in two
splits, and of images that look alike only one is taken. The same source and versions give the same bytes.
"""

import argparse
import csv
import io
import logging
import random
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from essa_dist.packing.pack import PackConfig, pack

logger = logging.getLogger("make_blood_cells")

SEED = 0
PER_CLASS = {"unlabelled": 200, "train": 50, "test": 100}
BASE_QUALITY = 23
"""WebP quality of an image before the rest of its last tar block is filled."""
ALIKE = 10.0
"""Root mean square difference, in grey levels at 32 x 32 px, below which two images count as the same picture.
The two most similar of the 4,000 source images differ by 18.8."""
MAX_BYTES = 8 * 2**20

Chosen = tuple[Path, str, str]  # file, class, split


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    chosen = choose(arguments.source)
    with tempfile.TemporaryDirectory() as folder:
        listing = write_listing(chosen, Path(folder))
        result = pack(settings(listing, arguments.out))
    logger.info("%s", result)
    if result["bytes"] > MAX_BYTES:
        raise SystemExit(
            f"{result['bytes']} bytes are more than {MAX_BYTES:,}: lower BASE_QUALITY or PER_CLASS"
        )


def settings(listing: Path, out: Path) -> PackConfig:
    return PackConfig(
        src=str(listing),
        out=str(out),
        name="blood-cells",
        source="Mendeley Data, doi:10.17632/snkd93bnjr, centre-cropped to 224 px; a subset, compressed again",
        licence="CC BY 4.0",
        attribution="Acevedo, Merino, Alferez, Molina, Boldu, Rodellar (2020): A dataset of microscopic peripheral "
        "blood cell images for development of automatic recognition systems. Data in Brief 30, 105474",
    )


def choose(source: Path) -> list[Chosen]:
    """Draw the images of every split, class by class, and shuffle them."""
    rng = random.Random(SEED)
    seen = LookAlikes()
    chosen: list[Chosen] = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        candidates = sorted(folder.iterdir())
        rng.shuffle(candidates)
        places = [split for split, count in PER_CLASS.items() for _ in range(count)]
        while places:
            if not candidates:
                raise SystemExit(f"{folder} has too few different images for {PER_CLASS}")
            path = candidates.pop()
            if not seen.add(path):
                logger.info("left out %s: it looks like one that was taken", path)
                continue
            chosen.append((path, folder.name, places.pop()))
    rng.shuffle(chosen)
    return chosen


class LookAlikes:
    """Thumbnails of the images taken so far."""

    def __init__(self) -> None:
        self.count, self.pixels = 0, np.empty((10_000, 32 * 32), dtype=np.float32)

    def add(self, path: Path) -> bool:
        """Take the image, unless one that looks like it was taken before."""
        with Image.open(path) as image:
            thumbnail = image.convert("L").resize((32, 32), Image.Resampling.BOX)
        new = np.asarray(thumbnail, dtype=np.float32).reshape(-1)
        taken = self.pixels[: self.count]
        # |a - b|^2 by its three products: the matrix of differences would take several times as long.
        square = np.einsum("ij,ij->i", taken, taken) + new @ new - 2 * taken @ new
        if self.count and square.min() < ALIKE**2 * new.size:
            return False
        self.pixels[self.count] = new
        self.count += 1
        return True


def write_listing(chosen: list[Chosen], folder: Path) -> Path:
    """Encode the images into ``folder`` beside a CSV. Keys of unlabelled images don't give their class away."""
    listing = folder / "images.csv"
    with listing.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split", "key"])
        for number, (path, label, split) in enumerate(chosen):
            (folder / f"{number}.webp").write_bytes(compress(path))
            key = f"cell_{number:04d}" if split == "unlabelled" else f"{label}/{path.stem}"
            rows.writerow([f"{number}.webp", "" if split == "unlabelled" else label, split, key])
    return listing


def compress(path: Path) -> bytes:
    """WebP of at least the base quality, and as good as fits the tar blocks that this takes anyhow."""
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    best = encoded(pixels, BASE_QUALITY)
    limit = -(-len(best) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    for quality in range(BASE_QUALITY + 1, 96):
        finer = encoded(pixels, quality)
        if len(finer) > limit:
            break
        best = finer
    return best


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
