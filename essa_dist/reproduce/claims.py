"""What the papers claim, beside what these cells show: no more than that, and no less."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from essa_dist.reproduce.cells import Claim, Figure

Row = Mapping[str, Any]
FACTS = ("data", "model", "fraction", "start", "adapter")

CLEAR = 2.0
"""Standard errors over seeds that make a difference clear."""


def judge_claim(claim: Claim, rows: Sequence[Row], planned: Sequence[Row]) -> dict[str, Any]:
    """``compared`` pairs of rows of ``of`` in the whole grid, in how many it is so, and whether it ``holds``.

    ``rows`` have ``value`` (a share), ``std`` and ``n_seeds``; ``planned`` are the facts of all groups of the grid.
    ``holds`` is None where nothing was compared. A pair is ``clear`` where the difference is more than two standard
    errors over seeds, of which both need two.
    """
    gaps = [(a["value"] - b["value"], _error(a, b)) for a, b in _pairs(claim, rows)]
    total = sum(1 for _ in _pairs(claim, planned))
    agree = sum(gap >= 0 for gap, _ in gaps)
    clear = [gap for gap, error in gaps if error is not None and abs(gap) > CLEAR * error]
    return {
        "claim": claim.text,
        "source": claim.source,
        "compared": len(gaps),
        "of": max(total, len(gaps)),
        "agree": agree,
        "clear_for": sum(gap > 0 for gap in clear),
        "clear_against": sum(gap < 0 for gap in clear),
        "mean_difference": mean(gap for gap, _ in gaps) if gaps else None,
        "least_difference": min((gap for gap, _ in gaps), default=None),
        "most_difference": max((gap for gap, _ in gaps), default=None),
        "needed": claim.share,
        "holds": agree / len(gaps) >= claim.share - 1e-9 if gaps else None,
    }


def _pairs(claim: Claim, rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    rows = [row for row in rows if all(row[name] in allowed for name, allowed in claim.within.items())]
    apart = {*claim.better, *claim.than}
    same = [name for name in FACTS if name not in apart]
    others = {tuple(row[name] for name in same): row for row in rows if _fits(row, claim.than)}
    for row in rows:
        other = others.get(tuple(row[name] for name in same))
        if _fits(row, claim.better) and other is not None:
            yield row, other


def _fits(row: Row, wanted: Mapping[str, Any]) -> bool:
    return all(row[name] == value for name, value in wanted.items())


def _error(a: Row, b: Row) -> float | None:
    if a["std"] is None or b["std"] is None:
        return None
    return math.sqrt(a["std"] ** 2 / a["n_seeds"] + b["std"] ** 2 / b["n_seeds"])


def judge_figure(figure: Figure, rows: Sequence[Row]) -> dict[str, Any]:
    """The paper's number and ours, in %; None where the cell was not run."""
    found = next((row for row in rows if _fits(row, figure.of)), None)
    return {
        "figure": figure.text,
        "source": figure.source,
        "paper": figure.value,
        "here": None if found is None else 100 * found["value"],
        "std": None if found is None or found["std"] is None else 100 * found["std"],
    }


def claim_words(judged: Mapping[str, Any]) -> str:
    """One line about a judged claim."""
    if not judged["compared"]:
        return f"not run: none of {judged['of']} comparisons"
    verdict = "holds here" if judged["holds"] else "does not hold here"
    if judged["compared"] < judged["of"]:
        verdict += f", as far as it was run ({judged['compared']} of {judged['of']} comparisons)"
    return (
        f"{verdict}: so in {judged['agree']} of {judged['compared']} (needed: {100 * judged['needed']:.0f} %), by "
        f"{100 * judged['mean_difference']:+.1f} points on average, {100 * judged['least_difference']:+.1f} to "
        f"{100 * judged['most_difference']:+.1f}; more than {CLEAR:g} standard errors over seeds in "
        f"{judged['clear_for']} for it, {judged['clear_against']} against"
    )
