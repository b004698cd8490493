"""``python -m essa_dist.planning.answer``: the plan of the one run that :mod:`.forecast` asks about, both as JSON."""

import json
import sys
from typing import Any

from essa_dist.planning.choices import Case, Choices
from essa_dist.planning.devices import known_as, read_table
from essa_dist.planning.forecast import GIB
from essa_dist.planning.plan import config_with


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The plan of one run on the GPU that it is on. Raises UsageError, or SystemExit, where there can be none."""
    table = read_table()
    run = config_with(question["config"]).model_validate(question["config"])
    name = known_as(question["name"], table)
    entry = table.device(name or "a100").model_copy(update={"memory_gib": question["memory"] / GIB})
    network, classes = table.interconnect("infiniband_ndr"), question.get("classes")
    choices = Choices(run, network, per_machine=8, classes=classes)
    case = Case(name or "gpu", question["ranks"], entry, 0.0)
    row = choices.row(case, question["layout"])
    if row.problem:
        raise SystemExit(row.problem)
    # What is held to fit, and yet didn't, needs ways out as well.
    least = entry.model_copy(update={"memory_gib": min(entry.memory_gib, 0.85 * row.needs / GIB)})
    ways = choices.with_ways(case._replace(device=least), row).ways
    return {
        "needs": row.needs,
        "memory": question["memory"],
        "name": question["name"],
        "terms": row.terms,
        "dominates": row.dominates,
        "ways": ways,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin))))
