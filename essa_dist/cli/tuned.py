"""The plan or the result of ``essa tune`` for a reader."""

from collections.abc import Iterator, Mapping
from typing import Any

from essa_dist.tuning.report.summary import to_text


def tuned(result: Mapping[str, Any]) -> str:
    """Of a dry run the estimate and the first draws; else the best trials as a table, how all ended, and the files."""
    return to_text(result) if "counts" in result else "\n".join(_plan(result)) + "\n"


def _plan(result: Mapping[str, Any]) -> Iterator[str]:
    cost, draws = result["estimate"], result["draws"]
    for number, drawn in enumerate(draws):
        yield f"t{number:04d}  {'  '.join(f'{name}={_short(value)}' for name, value in drawn.items())}"
    if cost["trials"] > len(draws):
        yield f"and {cost['trials'] - len(draws)} more"
    if result["learns"]:
        yield "(the first draws of such a space: what Optuna draws depends on results)"
    price = f", {cost['price']:.2f} in all" if "price" in cost else ""
    yield (
        f"estimate: {cost['trials']} trials of {cost['workers']} workers, {cost['minutes_a_trial']:g} min each "
        f"({cost['share_of_a_run']:.0%} of a run on average), {cost['worker_hours']:g} worker hours{price}, "
        f"at {cost['tflops']:g} TFLOP/s a worker, which is assumed: tflops= says otherwise"
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
