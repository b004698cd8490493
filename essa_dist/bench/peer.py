"""lightly-train as a program in an environment of its own: installed once, then run on images that are made for it.

It is under the AGPL-3: started as a command, neither imported nor copied.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from essa_dist.bench.children import ChildError, run, run_json
from essa_dist.bench.synthetic import JPEG_QUALITY, clouds
from essa_dist.engine.config import RunConfig
from essa_dist.errors import EssaError, UsageError

VERSION = "0.18.0"
MODELS = {f"dinov2_vit{size}14": f"dinov2/vit{size}14-noreg-notpretrained" for size in "sblg"}
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
IMAGE_PX = 256
CURE = "essa_torchvision_cure"
INSTALL_S = 1800.0


def ready_environment(folder: Path) -> dict[str, str]:
    """Versions in the environment ``folder``, which is made where it isn't there. Raises EssaError."""
    python = folder / "bin" / "python"
    if not python.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"env={folder} is a folder, but no virtual environment: name another")
        _install(folder, python)
    asked = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('lightly-train', 'torch')}))"
    try:
        versions: dict[str, str] = run_json([str(python), "-c", asked], timeout_s=120)
    except ChildError as error:
        raise UsageError(
            f"env={folder} holds no lightly-train ({error}): remove it, or install lightly-train=={VERSION} there"
        ) from None
    return versions


def _install(folder: Path, python: Path) -> None:
    wanted = [f"lightly-train=={VERSION}"]
    # Without local versions, as +cpu: pip takes the best that it is offered.
    wanted += [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
    try:
        run([sys.executable, "-m", "venv", str(folder)], timeout_s=300)
        run([str(python), "-m", "pip", "install", *wanted], timeout_s=INSTALL_S)
    except ChildError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EssaError(
            f"env={folder}: {' '.join(wanted)} can't be installed ({error}); without a registry: `pip download -d WHEELS "
            f"{' '.join(wanted)}` elsewhere, then PIP_NO_INDEX=1 PIP_FIND_LINKS=WHEELS here"
        ) from None


def make_images(folder: Path, count: int) -> None:
    """Photograph-like JPEGs."""
    folder.mkdir()
    for i in range(count):
        pixels = np.stack([clouds(IMAGE_PX, seed=3 * i + channel) for channel in range(3)], axis=2)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(folder / f"{i}.jpg", quality=JPEG_QUALITY)


def peer_command(config: RunConfig, *, images: Path, out: Path, gpu: bool) -> list[str]:
    """Its words for the same work as a step of ``config``. Raises UsageError for what it has no words for.

    Its stochastic depth is switched off, for it leaves out work, and its ViT-B and -L get the MLP of the released models.
    """
    if config.backbone.name not in MODELS:
        raise UsageError(
            f"backbone.name={config.backbone.name}: lightly-train is compared on {', '.join(MODELS)}"
        )
    head, crops, masks = config.objective.head, config.data.crops, config.data.masks
    method: dict[str, Any] = {
        "output_dim": head.prototypes,
        "hidden_dim": head.hidden,
        "dino_bottleneck_dim": head.bottleneck,
        "ibot_bottleneck_dim": head.bottleneck,
        "ibot_separate_head": config.objective.ibot_head != "shared",
        "center_method": {"softmax": "softmax", "sinkhorn": "sinkhorn_knopp"}[config.objective.centering],
        "mask_probability": masks.probability,
        "mask_ratio_min": masks.ratio_min,
        "mask_ratio_max": masks.ratio_max,
    }
    local = {"num_views": crops.n_local, "view_size": [crops.local_size] * 2} if crops.n_local else None
    words: dict[str, Any] = {
        "out": str(out),
        "data": str(images),
        "model": MODELS[config.backbone.name],
        "method": "dinov2",
        "epochs": 1,
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulate,
        "num_workers": 0,
        "precision": PRECISIONS[config.precision],
        "accelerator": "gpu" if gpu else "cpu",
        "devices": 1,
        "method_args": method,
        "transform_args": {"image_size": [crops.global_size] * 2, "local_view": local},
        "trainer_args": {"log_every_n_steps": 1},
        "model_args": {
            "drop_path_rate": config.backbone.drop_path,
            "ffn_layer": "swiglufused" if config.backbone.name.endswith("g14") else "mlp",
        },
    }
    return ["pretrain", *(f"{key}={json.dumps(value)}" for key, value in words.items())]


def peer_turn(
    env: Path, words: Sequence[str], *, scratch: Path, threads: int, out: Path, timeout_s: float
) -> dict[str, list[float]]:
    """Seconds of each of its steps, ``step_s``, and of its waiting for data, ``data_s``. Raises ChildError."""
    shutil.rmtree(out, ignore_errors=True)
    told = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "OMP_NUM_THREADS": str(threads)}
    told["PYTHONPATH"] = str(_cure(scratch))
    run([str(env / "bin" / "lightly-train"), *words], timeout_s=timeout_s, env=os.environ | told, cwd=scratch)
    rows = [json.loads(line) for file in out.rglob("metrics.jsonl") for line in file.read_text().splitlines()]
    found = {
        "step_s": [row["profiling/batch_time"] for row in rows if "profiling/batch_time" in row],
        "data_s": [row["profiling/data_time"] for row in rows if "profiling/data_time" in row],
    }
    if not found["step_s"]:
        raise ChildError("its metrics.jsonl holds no profiling/batch_time")
    return found


def _cure(scratch: Path) -> Path:
    """A folder whose modules mend torchvision beside a CPU torch, in every process that finds it on its path."""
    folder = scratch / "cure"
    if not folder.exists():
        folder.mkdir()
        spec = importlib.util.find_spec("essa_dist._torchvision")
        assert spec is not None
        assert spec.origin is not None
        shutil.copy(spec.origin, folder / f"{CURE}.py")
        (folder / "sitecustomize.py").write_text(f"import {CURE}\n\n{CURE}.cure()\n")
    return folder
