"""Write all of a sweep's report: trials.csv, the page with its pictures, and what TensorBoard shows."""

from pathlib import Path

from essa_dist import runfolder
from essa_dist.disk import write_whole
from essa_dist.report.html import fill
from essa_dist.tuning.record import Sweep
from essa_dist.tuning.report.csv_table import FILE, write_csv
from essa_dist.tuning.report.hparams import write_hparams
from essa_dist.tuning.report.sections import sections
from essa_dist.tuning.report.values import counts, number, ranked, settings, value_of

PAGE = "report.html"


def write_report(sweep: Sweep, out: Path) -> list[Path]:
    """Write ``out/trials.csv``, ``out/report/report.html``, its PNG files beside it, and ``out/tensorboard``.

    Files of an earlier report are replaced. Returns the files, and the folder for ``tensorboard --logdir``.
    """
    folder = out / runfolder.REPORT
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(sweep, out / FILE)
    shown = sections(sweep, folder)
    write_whole(folder / PAGE, fill(f"Sweep: {sweep.name}", sentence(sweep), (), shown))
    pictures = [picture.path for section in shown for picture in section.pictures]
    for stale in set(folder.glob("*.png")) - set(pictures):
        stale.unlink()
    return [out / FILE, folder / PAGE, *pictures, write_hparams(sweep, out)]


def sentence(sweep: Sweep) -> str:
    """The result in one sentence."""
    what = f"{len(sweep.trials)} trials" + (f" ({counts(sweep.trials)})" if sweep.trials else "")
    good = ranked(sweep)
    if not good:
        return f"{what}: none has a score yet."
    best, name = good[0], sweep.objectives[0].name
    return (
        f"{what}: the best is {best.name} with {name} {number(value_of(best, name))} at step "
        f"{best.best.get('step', best.step):.0f}, by {settings(best, sweep.parameters) or 'the base configuration'}."
    )
