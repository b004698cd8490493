"""The sections of the page that need no model: they are drawn from the run's own records."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from essa_dist.report.bars import draw_bars
from essa_dist.report.confusion import draw_confusion, has_confusion
from essa_dist.report.curves import CANARY, COLLAPSE, LOSSES, SCHEDULES, SPEED, Panel, draw_panels, present
from essa_dist.report.record import Pair, Record
from essa_dist.report.section import Details, Missing, Picture, Section
from essa_dist.report.tables import (
    facts_table,
    headline,
    recall_table,
    results_table,
    versions_table,
    with_interval,
)


def adapt_command(record: Record) -> str:
    return f"essa adapt {shlex.quote(str(record.run / 'config.yaml'))} out={shlex.quote(str(record.run))} resume=true overwrite=false"


def evaluate_commands(record: Record, base: str) -> str:
    """The two evaluations that a comparison needs; the packed data set is the reader's to name."""
    where = shlex.quote(str(record.run / "evaluation"))
    lines = [
        f"essa evaluate knn model={shlex.quote(model)} bank=PACKED:train test=PACKED:test out={where}/knn_{side}.json"
        for side, model in (("before", base), ("after", str(record.run)))
    ]
    return "; ".join(lines)


def results_section(record: Record, base: str, out: Path) -> Section:
    """Numbers and bars before and after."""
    title = "Before and after"
    if not record.pairs:
        gap = Missing("evaluations of the frozen and of the adapted model.", evaluate_commands(record, base))
        return Section(title, missing=(gap,))
    path = out / "bars.png"
    draw_bars(record.pairs, path)
    words = "; ".join(
        f"{p.title}: {with_interval(p.before)} before, {with_interval(p.after)} after" for p in record.pairs
    )
    bars = Picture(
        path,
        alt=f"Bars of balanced accuracy. {words}.",
        caption="Frozen model (before) and adapted model (after) at the same input. Whiskers: 95 % bootstrap interval "
        "over the test images. Dotted line: chance.",
    )
    return Section(title, tables=(results_table(record.pairs),), pictures=(bars,))


def curves_section(
    record: Record,
    title: str,
    panels: Sequence[Panel],
    out: Path,
    caption: str,
    *,
    smoothed: bool = False,
    command: str | None = None,
) -> Section:
    """One picture of curves over the steps; says so, with the ``command`` that records them, where the run has none of them."""
    shown = present(record.metrics, panels)
    if not shown:
        wanted = ", ".join(key for panel in panels for key in panel.series)
        return Section(
            title, missing=(Missing(f"metrics.jsonl has no {wanted}.", command or adapt_command(record)),)
        )
    path = out / f"{_slug(title)}.png"
    draw_panels(record.metrics, shown, path, smoothed=smoothed)
    first, last = record.metrics[0]["step"], record.metrics[-1]["step"]
    alt = f"Curves from step {first} to {last}: {', '.join(panel.title for panel in shown)}."
    return Section(title, pictures=(Picture(path, alt, caption),))


def training_sections(record: Record, out: Path) -> list[Section]:
    canary = curves_section(
        record,
        "Canary",
        CANARY,
        out,
        "The teacher's features on a fixed set of images, from before the first update on: a run that harms them shows it "
        "here while there is time to stop it.",
    )
    return [
        *([] if canary.missing else [canary]),  # a run that asked for none lacks nothing
        curves_section(
            record,
            "Losses",
            LOSSES,
            out,
            "Objective on the training batches. Thick lines are running means; pale lines are single records.",
            smoothed=True,
        ),
        curves_section(
            record,
            "Schedules",
            SCHEDULES,
            out,
            "What the schedules set at each step. A gap is a value that wasn't recorded.",
        ),
        curves_section(
            record,
            "Collapse diagnostics",
            COLLAPSE,
            out,
            "A collapsing run shows it here first: the targets of all images become one (the entropy of their mean "
            "falls towards 0), or no image prefers any prototype (the entropy of each stays at its maximum), or RankMe, "
            "the effective number of feature dimensions, falls.",
            smoothed=True,
        ),
        curves_section(
            record,
            "Speed",
            SPEED,
            out,
            "Images per second over all processes; the share of a step spent waiting for data should be near 0. "
            "Communication is under way beside computing as well as in its place; ranks.jsonl has all ranks' numbers.",
            smoothed=True,
        ),
    ]


def confusion_section(record: Record, base: str, out: Path) -> Section:
    """Where the errors went, one picture and one folded table per protocol (at the headline setting)."""
    title = "Confusion between classes"
    pairs = [pair for pair in headline(record.pairs) if has_confusion(pair)]
    if not pairs:
        gap = Missing("evaluations with a confusion matrix on both sides.", evaluate_commands(record, base))
        return Section(title, missing=(gap,))
    return Section(
        title,
        text="Rows are the true class, columns the predicted one, in % of the row. The diagonal is the recall of a class.",
        pictures=tuple(_confusion_picture(pair, out) for pair in pairs),
        folded=tuple(recall_table(pair) for pair in pairs),
    )


def _confusion_picture(pair: Pair, out: Path) -> Picture:
    path = out / f"confusion_{_slug(pair.protocol)}.png"
    draw_confusion(pair, path)
    return Picture(
        path,
        alt=f"Confusion matrices before and after, and the change of each class's recall, {pair.title}. "
        "The recalls are in the table below.",
        caption=f"{pair.title}: before, after, and the change of each class's recall.",
    )


def setup_section(record: Record) -> Section:
    """What ran, on what, and with which settings: for whoever wants to do it again."""
    tables = [table for table in (facts_table(record.summary), versions_table(record.summary)) if table.rows]
    gaps = []
    if len(tables) < 2:
        gaps.append(
            Missing("size, time and versions of the run (summary.json, which the demo writes).", "essa demo")
        )
    if not record.config:
        gaps.append(Missing("config.yaml.", "essa adapt CONFIG out=RUN"))
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    return Section(
        "The run",
        tables=tuple(tables),
        details=(Details("Resolved configuration", text),) if record.config else (),
        missing=tuple(gaps),
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "picture"
