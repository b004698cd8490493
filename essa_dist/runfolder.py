"""Where the parts of a run folder lie. Written by ``adapt``, read by evaluation, export and report."""

from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation"
EXPORT = "export"
REPORT = "report"
SUMMARY = "summary.json"
LOCK = "lock"
"""Held by the process that trains in the folder."""
MARKER = "COMMITTED"
"""Written last into a checkpoint: a folder without it is not a checkpoint."""


def is_run(folder: Path) -> bool:
    """Whether ``folder`` was made by ``adapt``."""
    return (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir()


def checkpoint_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` updates."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def committed_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; half-written ones are never listed."""
    found = (run / CHECKPOINTS).glob("step_????????")
    return sorted(folder for folder in found if (folder / MARKER).is_file())
