"""How long training waits for data: real steps of `essa adapt` with each decoder, images a second and share of waiting.

python benchmarks/data_wait.py [--models dinov2_vits14 ...] [--decoders torchvision dali] [--batch 64] [--out RESULT.json]

On a CPU, in a minute or two: --models dinov2_vits14 --batch 4 --steps 12 --images 100 --prototypes 1024
Images: JPEG of 512 px, made here. Weights: random, which take the same time. The first half of the steps is left out.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from essa_dist import adapt
from essa_dist.bench.machine import machine
from essa_dist.bench.synthetic import synthetic_set


def measure(
    model: str, decoder: str, packed: Path, out: Path, given: argparse.Namespace
) -> dict[str, object]:
    """One run; medians over the second half of its rows of metrics."""
    adapt(
        None,
        f"out={out}",
        f"data.train={packed}",
        f"backbone.name={model}",
        "backbone.weights=random",
        f"data.decoder={decoder}",
        f"data.workers={given.workers}",
        f"batch_size={given.batch}",
        f"duration={given.steps}",
        f"checkpoint.every={given.steps}",
        "log_every=1",
        f"objective.head.prototypes={given.prototypes}",
        f"adapter={given.adapter}",
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    late = rows[len(rows) // 2 :]
    return {
        "model": model,
        "adapter": given.adapter,
        "decoder": decoder,
        "batch": given.batch,
        "img_per_s": round(statistics.median(row["img_per_s"] for row in late), 2),
        "data_wait": round(statistics.median(row["data_wait"] for row in late), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"])
    parser.add_argument("--decoders", nargs="+", default=["torchvision", "dali"])
    parser.add_argument("--adapter", default="apla")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = synthetic_set("jpeg8", Path(folder) / "packed", images=given.images, size=512)
        for model in given.models:
            for decoder in given.decoders:
                out = Path(folder) / f"{model}_{decoder}"
                rows.append(measure(model, decoder, images.folder, out, given))
                print(json.dumps(rows[-1]), flush=True)
    if given.out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        given.out.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
