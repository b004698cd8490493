"""The demo: what adaptation does to a real pretrained ViT on real medical images, in one command.

Evaluate before, adapt, evaluate after, export, report. Labels are used only to evaluate.
"""

import datetime
import json
import logging
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from essa_dist import runfolder
from essa_dist.adapters import label
from essa_dist.backbones import Backbone, build_backbone
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.engine.adapt import adapt
from essa_dist.engine.config import RunConfig
from essa_dist.engine.recording.record import check_out, versions
from essa_dist.evaluation import ProbeConfig, evaluate_model
from essa_dist.export import ExportConfig, export
from essa_dist.export.models import load_model
from essa_dist.report import ReportConfig, report

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CENTER_CROP = 0.65
"""Central share of the image that suits frozen features best on these images; shown beside for fairness."""


class DemoConfig(RunConfig):
    """A run with labelled images to judge it on. Defaults: configs/demo.yaml."""

    bank: str = "assets/blood_cells:train"
    """Packed, labelled images that k-NN and the linear probe learn from."""
    test: str = "assets/blood_cells:test"
    """Packed, labelled images that they are judged on; never used in adaptation."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run the five steps; returns what it writes to ``out/summary.json``.

    ``knn_before``, ``knn_after``, ``linear_before``, ``linear_after`` are balanced accuracies (0..1) at 224 px;
    ``rows`` has every evaluation with its 95 % interval; ``seconds`` is the whole demo, ``img_per_s`` the adaptation.
    Raises what ``adapt``, ``evaluate`` and ``export`` raise; ``resume=true`` goes on after an interruption.
    """
    begin = time.perf_counter()
    run_config = RunConfig(**config.model_dump(exclude={"bank", "test"}))
    check_out(run_config)  # before minutes of evaluation
    bank, test = open_packed(config.bank, prefer=("train",)), open_packed(config.test, prefer=("test",))
    run, views = Path(config.out), _views(config)
    log.info("1/5 evaluate the frozen model on %d labelled images it will never adapt to", len(test))
    before = _evaluate(build_backbone(config.backbone, seed=config.seed).eval(), "before", bank, test, views)
    log.info("2/5 adapt")
    adapted = adapt(run_config)
    log.info("3/5 evaluate the adapted model")
    after = _evaluate(load_model(str(run)), "after", bank, test, views)
    _write_results(run / runfolder.EVALUATION, before + after)
    log.info("4/5 export")
    exported = export(ExportConfig(run=str(run), out=str(run / runfolder.EXPORT / "timm"), overwrite=True))
    summary = _summary(config, adapted, before, after) | {
        "export_bytes": exported["files"]["model.safetensors"],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    (run / runfolder.SUMMARY).write_text(json.dumps(summary, indent=1))
    log.info("5/5 report")
    page = report(ReportConfig(run=str(run), images=config.test))
    return summary | {"report": page["html"], "export": exported["out"]}


def _views(config: RunConfig) -> list[tuple[int, float]]:
    """(input size, central share) of each evaluation; the first is the one that the summary's head quotes."""
    return [(224, 1.0), (config.data.crops.global_size, 1.0), (224, CENTER_CROP)]


def _evaluate(
    model: Backbone, when: str, bank: PackedImages, test: PackedImages, views: Sequence[tuple[int, float]]
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for size, crop in views:
        probe = ProbeConfig(image_size=size, crop=crop)
        results += evaluate_model(model, bank, test, ("knn", "linear"), probe, model=when).values()
        log.info("%s, %d px, central %.0f %%: %s", when, size, 100 * crop, _short(results[-2:]))
    return results


def _short(results: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{r['protocol']} balanced accuracy {r['balanced_accuracy']:.3f}" for r in results)


def _write_results(folder: Path, results: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    for r in results:
        name = f"{r['model']}_{r['protocol']}_{r['image_size']}_{round(100 * r['crop'])}.json"
        (folder / name).write_text(json.dumps(r, indent=1))


def _summary(
    config: DemoConfig,
    adapted: dict[str, Any],
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> dict[str, Any]:
    rows = [
        {
            "protocol": b["protocol"],
            "image_size": b["image_size"],
            "crop": b["crop"],
            "before": b,
            "after": a,
        }
        for b, a in zip(before, after, strict=True)
    ]
    keys = (
        "trainable_parameters",
        "trunk_parameters",
        "head_parameters",
        "checkpoint_bytes",
        "img_per_s",
        "step",
    )
    return {
        "knn_before": round(before[0]["balanced_accuracy"], 6),
        "knn_after": round(after[0]["balanced_accuracy"], 6),
        "linear_before": round(before[1]["balanced_accuracy"], 6),
        "linear_after": round(after[1]["balanced_accuracy"], 6),
        **{key: adapted[key] for key in keys},
        "adapt_seconds": adapted["seconds"],
        "adapter": label(config.adapter),
        "model": config.backbone.name,
        "steps": adapted["step"],
        "batch_size": config.batch_size,
        "seed": config.seed,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }


def _commit() -> str | None:
    """The commit that computed this, where it is run from a clone."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
