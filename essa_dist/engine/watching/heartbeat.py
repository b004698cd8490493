"""Heartbeats: where each rank is, and who is to blame when none of them moves.

Nothing here communicates: what ranks tell each other is the watchdog's business (``engine.watchdog``).
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch.distributed as dist

Place = Literal[
    "starting", "waiting for a batch", "forward and backward", "update", "recording", "evaluating", "saving"
]
PLACES: tuple[Place, ...] = get_args(Place)
"""In the order in which a step passes them."""
NAMED = 3
"""Ranks that a verdict describes; of more it tells the number."""


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself."""

    number: int
    """Of the beat: one that doesn't grow comes from a process that doesn't run."""
    step: int
    """From 1; 0 before the first."""
    place: Place
    overdue: bool
    """Whether it has made no progress for longer than allowed."""
    entered: int = 0
    """Collectives that the rank has entered so far, of all groups."""
    code: str = ""
    """The line that its main thread is at, where it seems to be stuck."""
    host: str = ""
    pid: int = 0
    ended: str = ""
    """Why the rank has left its run, where it has."""

    @property
    def where(self) -> str:
        """``step 812, waiting for a batch``."""
        return f"step {self.step}, {self.place}" if self.step else self.place

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "Beat":
        return Beat(**json.loads(text))


class Heard(NamedTuple):
    """What is known of one rank."""

    beat: Beat | None
    """Its newest; None where it never sent any."""
    silent_s: float = 0.0
    """How long it has been the newest."""


def verdict(heard: Mapping[int, Heard], *, silence_s: float) -> str | None:
    """Who keeps a run from going on, as words; None while any rank that is heard of moves, or may still be waited for.

    A rank whose beats have stopped for ``silence_s`` seconds is frozen or gone; one that beats but is overdue is stuck.
    Of those that are stuck, the ones that have come least far are waited for by the others.
    """
    gone = {r for r, h in heard.items() if h.beat is None or h.beat.ended or h.silent_s >= silence_s}
    alive = {r: h.beat for r, h in heard.items() if r not in gone and h.beat is not None}
    if not all(beat.overdue for beat in alive.values()):
        return None
    least = min((_progress(beat) for beat in alive.values()), default=None)
    behind = sorted(gone) or [r for r, beat in alive.items() if _progress(beat) == least]
    if len(behind) == len(heard) > 1 and not gone:
        beat = alive[behind[0]]
        return (
            f"all {len(heard)} ranks are stuck in the same place, {beat.where}{_code(beat)}: "
            "a collective doesn't come back, look at the network between them"
        )
    more = f"; and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
    waiting = next((beat for r, beat in alive.items() if r not in behind), None)
    others = f"; the others wait in {waiting.where}" if waiting else ""
    return "; ".join(_blame(r, heard[r]) for r in behind[:NAMED]) + more + others


def _progress(beat: Beat) -> tuple[int, int, int]:
    return beat.step, PLACES.index(beat.place), beat.entered


def _blame(rank: int, heard: Heard) -> str:
    beat = heard.beat
    if beat is None:
        return f"rank {rank} was never heard of"
    who = f"rank {rank} (host {beat.host}, pid {beat.pid})"
    if beat.ended:
        return f"{who} has left after {beat.where}: {beat.ended}"
    if beat.overdue:  # also one whose beats stopped later
        return f"{who} is stuck in {beat.where}{_code(beat)}"
    return (
        f"{who} is frozen or its host is gone: no heartbeat for {heard.silent_s:.0f} s, "
        f"last heard of in {beat.where}"
    )


def _code(beat: Beat) -> str:
    return f" ({beat.code})" if beat.code else ""


def line_of_code(thread: int) -> str:
    """The innermost line of this package that ``thread`` is at, and what it calls: ``loader.py:82, in queues.py:103``."""
    frame = sys._current_frames().get(thread)
    inner = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""
    package = str(Path(__file__).parents[1])
    while frame and not frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
    own = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else inner
    return own if own == inner else f"{own}, in {inner}"


def collectives_entered() -> int:
    """Collectives of all groups that this process has begun so far; 0 where the backends don't count them."""
    if not dist.is_initialized():
        return 0
    entered = 0
    for group in list(dist.distributed_c10d._world.pg_map):
        try:
            entered += group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # missing in torch's annotations
        except RuntimeError:
            continue
    return entered
