"""Where the parts of a run folder lie. Written by ``adapt``, read by evaluation, export and report."""

from contextlib import suppress
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
RANKS = "ranks.jsonl"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation"
EXPORT = "export"
REPORT = "report"
SUMMARY = "summary.json"
LOCK = "lock"
"""Held by the process that trains in the folder."""
MARKER = "COMMITTED"
"""Written last into a checkpoint: a folder without it is not a checkpoint."""
BEST = "BEST"
"""In the folder of checkpoints: the name of the one that is the run's result, where that is not the newest."""


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


def result_checkpoint(run: Path) -> Path | None:
    """The checkpoint that is the run's result: the marked best, or else the newest; None where there is none."""
    return best_checkpoint(run) or next(reversed(committed_checkpoints(run)), None)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that :func:`mark_best` named, if it is complete."""
    try:
        name = (run / CHECKPOINTS / BEST).read_text().strip()
    except OSError:
        return None
    return next((folder for folder in committed_checkpoints(run) if folder.name == name), None)


def take_back_start(run: Path) -> None:
    """Undo what a start has made of ``run`` that ends before anything was trained, so that it can be made once more.

    The lock stays, which another process may be waiting for.
    """
    checkpoints = run / CHECKPOINTS
    with suppress(OSError):
        if {path.name for path in run.iterdir()} <= {LOCK, CONFIG, CHECKPOINTS}:
            checkpoints.rmdir()  # which fails where there is one
            (run / CONFIG).unlink()


def mark_best(run: Path, step: int | None) -> None:
    """Make the checkpoint after ``step`` updates, which may yet have to be written, the result; None: the newest is."""
    mark = run / CHECKPOINTS / BEST
    if step is None:
        mark.unlink(missing_ok=True)
        return
    beside = mark.with_name(f".{BEST}")
    beside.write_text(f"{checkpoint_folder(run, step).name}\n")
    beside.replace(mark)
