"""A failure among many ranks: the first cause is told once, by the rank that had it."""

import sys
from typing import NamedTuple

from essa_dist.cli.failures import Failure
from essa_dist.cli.streams import is_first_on_node, rank, world_size
from essa_dist.errors import Preempted, UsageError


class Verdict(NamedTuple):
    failure: Failure
    """What this rank ends with; where another failed first, that one's exit code."""
    is_told: bool
    """Whether it is this rank who says it."""


def among_ranks(error: BaseException, found: Failure) -> Verdict:
    """What a rank says of an ``error`` that was ``found`` to be so, and how it ends.

    Ranks that have met compare notes; before that, a wrong setting is the same on all ranks of a machine, and a signal
    mostly came to all of them, so one of them says it.
    """
    torch_distributed = sys.modules.get(
        "torch.distributed"
    )  # a process that never imported it has no company
    if not (torch_distributed and torch_distributed.is_available() and torch_distributed.is_initialized()):
        return Verdict(found, is_told=not isinstance(error, (UsageError, Preempted)) or is_first_on_node())
    if torch_distributed.get_world_size() == 1:
        return Verdict(found, is_told=True)
    return _compare(error, found)


def _compare(error: BaseException, found: Failure) -> Verdict:
    from essa_dist.distributed.first_cause import first_cause, is_broken_collective, missing_ranks

    broken = is_broken_collective(error)
    first = first_cause("; ".join(found.lines), found.exit_code, broken=broken)
    if first is None:  # the store is gone, and the launcher or rank 0 with it
        if broken:
            return Verdict(_lost([0], found), is_told=rank() == 1 or is_first_on_node())
        return Verdict(found, is_told=not isinstance(error, Preempted) or rank() == 0)
    if first.rank != rank():
        why = "another rank was killed" if first.broken else f"rank {first.rank} said: {first.text}"
        return Verdict(Failure((f"stopped, because {why}",), first.exit_code), is_told=False)
    return Verdict(_lost(missing_ranks(), found) if broken else found, is_told=True)


def _lost(ranks: list[int], found: Failure) -> Failure:
    """What is said where a collective broke: ``ranks`` are those that nothing was heard from since."""
    if not ranks:
        return Failure((f"the ranks lost their connection; go on with resume=true ({found.lines[0]})",), 1)
    who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    return Failure(
        (
            f"{who} of {world_size()} killed, or lost with the host: the launcher may say how, dmesg tells of kills for "
            "want of memory; go on with resume=true",
        ),
        1,
    )
