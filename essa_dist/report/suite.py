"""A suite's table on a page: of its own, and as a section of the page of a run that holds it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essa_dist import runfolder
from essa_dist.distributed.collectives import rank
from essa_dist.evaluation.suite import SuiteConfig, run_suite
from essa_dist.evaluation.suite.table import COLUMNS, TABLE
from essa_dist.evaluation.suite.words import grid, note
from essa_dist.report.html import fill
from essa_dist.report.section import Picture, Section, Table
from essa_dist.report.suite_pictures import draw_suite_bars, draw_suite_radar, has_radar

log = logging.getLogger(__name__)


def evaluate_suite(config: SuiteConfig) -> dict[str, Any]:
    """``run_suite``, then bars.png, radar.png and report.html beside its table; ``html`` and ``pictures`` name them."""
    table = run_suite(config)
    if rank() != 0:
        return table
    out = Path(config.out)
    section = suite_section(table, out, title="Evaluations")
    page = out / "report.html"
    page.write_text(fill(f"Suite: {out.resolve().name}", _sentence(table), (), (section,)), encoding="utf-8")
    return table | {"html": str(page), "pictures": [str(picture.path) for picture in section.pictures]}


def suite_section(table: Mapping[str, Any], out: Path, *, title: str) -> Section:
    """The quoted values as a table and as pictures in ``out``; every other value folded."""
    head, rows = grid(table)
    bars = out / "bars.png"
    draw_suite_bars(table, bars)
    words = "; ".join(
        f"{row[0]}, {row[1]}: " + ", ".join(map(" ".join, zip(head[2:], row[2:], strict=True)))
        for row in rows
    )
    pictures = [Picture(bars, f"Bars. {words}.", "Whiskers: 95 % interval over the choice of test images.")]
    if has_radar(table):
        radar = out / "radar.png"
        draw_suite_radar(table, radar)
        caption = (
            "Each spoke has a scale of its own, given at its end: outermost is the best model there, so the picture shows "
            "which model is ahead and not by how much."
        )
        pictures.append(Picture(radar, f"Radar of the same values. {words}.", caption))
    return Section(
        title,
        text=note(table),
        tables=(Table(f"Against {table['baseline']}", head, tuple(rows)),),
        pictures=tuple(pictures),
        folded=(_all_values(table),),
    )


def suite_sections(run: Path, out: Path) -> list[Section]:
    """One section for each suite below the run's evaluations; none where there is none."""
    sections = []
    for file in sorted((run / runfolder.EVALUATION).glob(f"*/{TABLE}")):
        name = file.parent.name
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            folder = out / f"suite_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            sections.append(suite_section(table, folder, title=f"Suite: {name}"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is left out, it can't be read: %s", file, error)
    return sections


def _sentence(table: Mapping[str, Any]) -> str:
    evaluations = len({row["protocol"] + row["data"] + str(row["fraction"]) for row in table["rows"]})
    return f"{len(table['models'])} models in {evaluations} evaluations, compared with {table['baseline']}."


def _all_values(table: Mapping[str, Any]) -> Table:
    shown = [name for name in COLUMNS if name not in ("quoted", "p_seeds")]
    rows = tuple(tuple(_text(row[name]) for name in shown) for row in table["rows"])
    return Table("Every metric at every setting (table.csv)", tuple(shown), rows)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
