"""What a run says of itself: when it begins, and when it has ended."""

import logging
from pathlib import Path
from typing import Any

from essa_dist.adapters import label
from essa_dist.data.stream import TarStream
from essa_dist.distributed.environment import backend
from essa_dist.engine.build import Training
from essa_dist.engine.config import JobConfig
from essa_dist.progress import memory_gib

log = logging.getLogger(__name__)


def announce(training: Training, config: JobConfig) -> None:
    """One line: what is trained, on how many images, for how long, on what."""
    t = training
    trained = t.trained.trunk
    log.info(
        "%s: %s trains %s of %s trunk parameters (%.2f %%), heads %s; %s, %d steps of %d, %s on %d x %s (%s), %s",
        t.objective.backbone.name,
        label(config.adapter),
        f"{trained:,}",
        f"{t.trunk.parameters:,}",
        100 * trained / t.trunk.parameters,
        f"{t.trained.heads:,}",
        f"tars drawn at random, {len(t.images)} samples an epoch"
        if isinstance(t.images, TarStream)
        else f"{len(t.images)} images",
        t.total_steps,
        config.batch_size,
        t.strategy.name,
        t.accelerator.num_processes,
        t.accelerator.device.type,
        backend(),
        config.precision,
    )


def summary(training: Training, checkpoint: Path, *, seconds: float, images: int) -> dict[str, Any]:
    """What was trained, where it is saved, and what it cost: ``images`` in ``seconds``, over all ranks."""
    return {
        "trainable_parameters": training.trained.trunk,
        "trunk_parameters": training.trunk.parameters,
        "head_parameters": training.trained.heads,
        "checkpoint": str(checkpoint),
        # Only rank 0 needs the folder; on other machines it may not be there.
        "checkpoint_bytes": sum(file.stat().st_size for file in checkpoint.glob("*")),
        "seconds": round(seconds, 1),
        "img_per_s": round(images / seconds, 2) if images else None,
        "memory_gib": round(memory_gib(), 3),
    }
