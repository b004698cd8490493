"""``essa data ledger``: did a run see every sample of every epoch once, whatever interrupted it?"""

from pathlib import Path
from typing import Any

from essa_dist.data.ledger import audit
from essa_dist.data.loader import DataConfig
from essa_dist.data.plan import SamplePlan
from essa_dist.errors import DataError, UsageError
from essa_dist.report.record import read_record
from essa_dist.settings import Config


class LedgerConfig(Config):
    """Which run. Needs `run`."""

    run: str
    """A run folder, recorded with `ledger=true`."""
    data: str | None = None
    """Where the packed data set lies now; none: where the run found it."""


def check_ledger(config: LedgerConfig) -> dict[str, Any]:
    """Compare what each step saw with the sample plan, and count repeats and gaps in each complete epoch.

    Raises UsageError for what is no run, DataError where there is no ledger, or it tells of repeated or skipped samples.
    """
    run = Path(config.run)
    recorded = read_record(run).config
    if not isinstance(recorded.get("data"), dict):
        raise UsageError(f"run={run}: config.yaml has no data section: it is not one that adapt wrote")
    changed = {"train": config.data} if config.data else {}
    images = DataConfig.model_validate(dict(recorded["data"]) | changed).open()
    plan = SamplePlan(len(images), int(recorded.get("seed", 0)))
    found = audit(run, plan, images.keys, int(recorded["batch_size"]))
    if found.missing_steps or found.repeated or found.skipped or found.unplanned:
        raise DataError(
            f"{run}: {found.missing_steps} steps are not recorded by all ranks; in {found.epochs} complete epochs "
            f"{found.repeated} samples were repeated and {found.skipped} skipped ({found.unplanned} of {found.samples} "
            "are not the plan's)"
        )
    return {
        "steps": found.steps,
        "samples": found.samples,
        "starts": [f"after step {start.step} on {start.world_size} rank(s)" for start in found.starts],
        "epochs": found.epochs,
        "repeated": found.repeated,
        "skipped": found.skipped,
        "replaced": found.replaced,
        "not_as_planned": found.unplanned,
    }
