"""CPU milliseconds per image of reading, decoding and cropping on one CPU thread: `python benchmarks/data_speed.py PACKED`."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

import essa_dist  # noqa: F401  (mends torchvision where that is needed)
from essa_dist.data.augment import CropConfig, make_crops
from essa_dist.data.shards import PackedImages, open_packed

SETTINGS = {
    "2x160 + 4x64 medical": CropConfig(
        policy="medical",
        global_size=160,
        local_size=64,
        n_local=4,
        global_scale=(0.4, 1.0),
        local_scale=(0.1, 0.4),
    ),
    "2x224 + 8x98 dinov2": CropConfig(),
    "2x224 + 8x98 dinov2, resize 256": CropConfig(resize=256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", help="a packed data set, DIR or DIR:split")
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = open_packed(arguments.packed, prefer=("unlabelled", "train"))
    count = min(arguments.images, len(images))
    _say(f"{'decode':36s}{_milliseconds(images.decode, count):8.2f} ms/image")
    for name, config in SETTINGS.items():
        spent = _milliseconds(partial(_decode_and_crop, images, config), count)
        _say(f"{name:36s}{spent:8.2f} ms/image")


def _decode_and_crop(images: PackedImages, config: CropConfig, i: int) -> object:
    return make_crops(images.decode(i), config, i)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _milliseconds(work: Callable[[int], object], count: int) -> float:
    work(0)
    start = time.process_time()
    for i in range(count):
        work(i)
    return (time.process_time() - start) / count * 1e3


if __name__ == "__main__":
    main()
