"""The parts of the page, each from the record of the set."""

from pathlib import Path

from essa_dist.packing.report import tables
from essa_dist.packing.report.charts import BARS, Panel, draw_classes, draw_panels, panels
from essa_dist.packing.report.record import Packed
from essa_dist.packing.report.sample import grey_values, look, sheet_rows, statistics_rows
from essa_dist.packing.report.sheet import draw_pairs, draw_sheet, label, look_at_pairs
from essa_dist.report.section import Missing, Picture, Section, Table

MANY = 40
"""Rows: a longer table is folded."""


def sections(packed: Packed, folder: Path) -> list[Section]:
    """All of them; their pictures are written into ``folder``."""
    return [
        Section("What it is", tables=(tables.identity(packed), tables.splits(packed))),
        _sheet(packed, folder),
        *([_classes(packed, folder)] if packed.manifest.classes else []),
        _measures(packed, folder),
        _duplicates(packed, folder),
        _privacy(packed),
        _quarantine(packed),
    ]


def _sheet(packed: Packed, folder: Path) -> Section:
    title = "Contact sheet"
    chosen = sheet_rows(packed)
    shown = [one for row in chosen if (one := look(packed, row)) is not None]
    if not shown:
        return Section(title, missing=(Missing("pictures: no image of the set can be read here."),))
    path = folder / "sheet.png"
    draw_sheet(packed, shown, path)
    masked = ", with masks outlined" if any(one.mask is not None for one in shown) else ""
    unread = f" {len(chosen) - len(shown)} could not be read." if len(shown) < len(chosen) else ""
    names = "; ".join(dict.fromkeys(label(packed, one.row) for one in shown))
    picture = Picture(
        path,
        alt=f"{len(shown)} samples of the set{masked}: {names}.",
        caption=f"{len(shown)} of {len(packed.index):,} samples{masked}, each in its own window: the first of each class in "
        f"each split, then the second, and so on, in the order of storage.{unread}",
    )
    return Section(title, pictures=(picture,))


def _classes(packed: Packed, folder: Path) -> Section:
    path = folder / "classes.png"
    draw_classes(packed, path)
    manifest = packed.manifest
    cut = f" The {BARS} largest of {len(manifest.classes)} classes." if len(manifest.classes) > BARS else ""
    picture = Picture(
        path,
        alt="Bars of the share of each class in each split; the numbers are in the table.",
        caption=f"How often each class is, split by split.{cut} Bars of unlike length in two splits: they were not "
        "divided alike.",
    )
    table, unknown = tables.classes(packed), tables.unknown(packed)
    short, long = _folded(table)
    return Section(
        "Classes", tables=short, pictures=(picture,), folded=(*long, *([unknown] if unknown else []))
    )


def _measures(packed: Packed, folder: Path) -> Section:
    rows = statistics_rows(packed)
    grey, read = grey_values(packed, rows)
    found = panels(packed)
    plotted = [panel for panel in found if not panel.constant]
    path = folder / "measures.png"
    words = [words for panel in found if panel.constant and (words := panel.in_words())]
    if not read and not plotted:
        return Section("Measures", text=". ".join(words), missing=(Missing("pictures to measure."),))
    draw_panels(plotted, grey if read else None, packed, path)
    which = "all" if read == len(packed.index) else f"{read:,} evenly spaced"
    values = (
        f"Shown values: of {which} samples, in their own windows; mean and deviation are of all. "
        if read
        else ""
    )
    picture = Picture(
        path,
        alt=f"Histograms: {', '.join([*(['shown values'] if read else []), *(p.title.lower() for p in plotted)])}.",
        caption=f"{values}All else: of all {len(packed.index):,} samples.",
    )
    return Section(
        "Measures",
        text=f"{'. '.join(words)}." if words else "",
        tables=(_quantiles(found),),
        pictures=(picture,),
    )


def _quantiles(found: list[Panel]) -> Table:
    import numpy as np

    rows = [
        (
            f"{panel.title}{f', {name}' if len(panel.series) > 1 else ''} ({panel.unit})",
            *(
                f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
                for value in np.quantile(values, QUANTILES)
            ),
        )
        for panel in found
        for name, values in panel.series.items()
        if len(values)
    ]
    return Table("Of all samples", ("", "least", "5 %", "median", "95 %", "most"), tuple(rows))


QUANTILES = (0, 0.05, 0.5, 0.95, 1)


def _duplicates(packed: Packed, folder: Path) -> Section:
    title = "Duplicates"
    if packed.findings is None:
        return Section(title, missing=(Missing("findings.json: duplicates were not looked for."),))
    found = [kind for kind in (packed.findings.exact, packed.findings.near) if kind is not None]
    named = [pair for kind in found for pair in kind.pairs]
    first = sorted(named, key=lambda pair: pair.splits[0] == pair.splits[1])  # stable: leaks before the rest
    shown = look_at_pairs(packed, first)
    pictures: tuple[Picture, ...] = ()
    if shown:
        path = folder / "pairs.png"
        draw_pairs(shown, path)
        words = "; ".join(f"{p.a} ({p.splits[0]}) and {p.b} ({p.splits[1]})" for p, _, _ in shown)
        pictures = (
            Picture(
                path, f"Pairs of alike samples: {words}.", "Pairs across splits first; one of each picture."
            ),
        )
    table = tables.pairs(packed)
    dropped = packed.findings.dropped
    text = ", ".join(f"{count:,} of {split}" for split, count in dropped.items())
    return Section(
        title,
        text=f"Left out as duplicates: {text}." if text else "",
        tables=(tables.duplicates(packed),),
        pictures=pictures,
        folded=(table,) if table else (),
    )


def _privacy(packed: Packed) -> Section:
    table = tables.privacy(packed)
    if packed.findings is None:
        text = "Not examined: there is no findings.json."
    elif table is None:
        text = "Nothing was found in the headers of the source files. What is burnt into pixels shows only where a header tells."
    else:
        text = (
            "Found in the source files; the packed set holds no header. What is burnt into pixels is in the packed images "
            "too: look at them."
        )
    return Section("Privacy", text=text, tables=(table,) if table else ())


def _quarantine(packed: Packed) -> Section:
    table = tables.quarantine(packed)
    if table is None:
        return Section("Left out", text="Nothing was left out.")
    short, long = _folded(table)
    return Section("Left out", text="All of them are in quarantine.csv.", tables=short, folded=long)


def _folded(table: Table) -> tuple[tuple[Table, ...], tuple[Table, ...]]:
    """The table as (shown, folded)."""
    return ((), (table,)) if len(table.rows) > MANY else ((table,), ())
