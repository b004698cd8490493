"""What the papers claim, beside what these cells show: no more than that, and no less."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from essa_dist.reproduce.cells import Claim, Figure
from essa_dist.reproduce.matched import matched_test, matched_words

Row = Mapping[str, Any]
FACTS = ("data", "model", "fraction", "start", "adapter")


def judge_claim(
    claim: Claim, rows: Sequence[Row], planned: Sequence[Row], cells: Sequence[Row]
) -> dict[str, Any]:
    """``compared`` pairs of rows of ``of`` in the whole grid, in how many it is so, and whether it ``holds``.

    ``rows`` have ``value``, a share; ``planned`` are the facts of all groups of the grid. ``holds`` is None where nothing
    was compared. ``cells`` are the finished runs, with ``seed`` and ``unit``: what :func:`matched_test` says of those that
    are alike in all but what the claim compares, seed included.
    """
    gaps = [a["value"] - b["value"] for a, b in _pairs(claim, rows)]
    total = sum(1 for _ in _pairs(claim, planned))
    agree = sum(gap >= 0 for gap in gaps)
    return {
        "claim": claim.text,
        "source": claim.source,
        "compared": len(gaps),
        "of": max(total, len(gaps)),
        "agree": agree,
        "least_difference": min(gaps, default=None),
        "most_difference": max(gaps, default=None),
        "needed": claim.share,
        "holds": agree / len(gaps) >= claim.share - 1e-9 if gaps else None,
        **matched_test(list(_pairs(claim, cells, "seed"))),
    }


def _pairs(claim: Claim, rows: Sequence[Row], *alike: str) -> Iterator[tuple[Row, Row]]:
    """Of rows that are the same in all facts that the claim doesn't name, and in ``alike``."""
    rows = [row for row in rows if all(row[name] in allowed for name, allowed in claim.within.items())]
    apart = {*claim.better, *claim.than}
    same = [name for name in (*FACTS, *alike) if name not in apart]
    others = {tuple(row[name] for name in same): row for row in rows if _fits(row, claim.than)}
    for row in rows:
        other = others.get(tuple(row[name] for name in same))
        if _fits(row, claim.better) and other is not None:
            yield row, other


def _fits(row: Row, wanted: Mapping[str, Any]) -> bool:
    return all(row[name] == value for name, value in wanted.items())


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
    told = (
        f"{verdict}: so in {judged['agree']} of {judged['compared']} (needed: {100 * judged['needed']:.0f} %), by "
        f"{100 * judged['least_difference']:+.1f} to {100 * judged['most_difference']:+.1f} points"
    )
    return f"{told}; {matched_words(judged)}" if judged["matched"] else f"{told}; no two cells of one seed"
