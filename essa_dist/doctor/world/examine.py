"""From this process's place in the world to the report: meet, tell, judge, try."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from essa_dist.doctor.world.absence import absent, hello, silent
from essa_dist.doctor.world.findings import Finding, judge
from essa_dist.doctor.world.findings_run import judge_run, launch_file
from essa_dist.doctor.world.launching import asked
from essa_dist.doctor.world.meeting import Meeting, Roll, meet
from essa_dist.doctor.world.place import Place
from essa_dist.doctor.world.record import RankRecord, own_record
from essa_dist.doctor.world.report import as_result, n_nodes
from essa_dist.doctor.world.run import MISSING, RunFacts, read_run, run_facts, sees, write_token
from essa_dist.doctor.world.trial import Trial, judge_trial, try_out
from essa_dist.errors import EssaError, UsageError

if TYPE_CHECKING:
    from essa_dist.config import RunConfig

log = logging.getLogger(__name__)

_LINGER_S = 2.0  # a launcher ends everybody as soon as one rank fails: the one that tells has to be the first
_KEEPER_S = 1.0  # by which the rank that keeps the store stays, so that the others hear the verdict


class WorldError(EssaError):
    """What is wrong with the world, told by another rank than 0, which did not come."""


@dataclass
class World:
    """What this rank knows by now."""

    place: Place
    meeting: Meeting
    speaker: int = 0
    hellos: Mapping[int, str] = field(default_factory=dict)
    records: list[RankRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    trial: Trial = field(default_factory=Trial)
    failed: bool = False

    @property
    def tells(self) -> bool:
        """Whether this rank judges and reports."""
        return self.speaker == self.place.rank

    def find(self, *findings: Finding) -> None:
        self.findings += findings
        self.failed = self.failed or any(not finding.warns for finding in findings)


def examine_world(
    place: Place, *, words: Sequence[str], launch: str | None, seconds: float
) -> dict[str, Any]:
    """The report, complete on the rank that tells and of the same shape on the others.

    ``words``: those after ``essa adapt``, none to look at the world alone; ``launch``: the Accelerate config that the
    launcher was given (None: look at its command line); ``seconds``: how long to wait for others, in each of three
    rounds. ``exit_code`` is 1 on every rank where there is a problem. Raises WorldError where rank 0, whose report it
    would be, is missing; UsageError or UnreachableError where this rank can't reach the others.
    """
    begin = time.perf_counter()
    os.environ.update(place.environment())
    try:
        world = World(place, meet(place, seconds=seconds))
    except UsageError:
        time.sleep(0 if place.local_rank in (0, None) else _LINGER_S)  # one of a node speaks
        raise
    _examine(world, words, launch)
    if place.world_size > 1:
        time.sleep(
            _LINGER_S if world.failed and not world.tells else 0 if place.hosted or place.rank else _KEEPER_S
        )
    if world.tells and world.failed and place.rank != 0:
        raise WorldError("\n".join(finding.text for finding in world.findings if not finding.warns))
    taken = time.perf_counter() - begin
    return as_result(place, world.records, world.findings, world.trial, failed=world.failed, seconds=taken)


def _examine(world: World, words: Sequence[str], launch: str | None) -> None:
    place, meeting = world.place, world.meeting
    if place.rank == 0 and place.world_size > 1:
        log.info("waiting up to %.0f s for %d ranks", meeting.seconds, place.world_size)
    if meeting.count(f"came/{place.rank}") > 1:
        meeting.say(f"twice/{place.rank}", hello())
    if _lacks(world, meeting.round("here", hello()), came=False):
        return
    clock = time.time()
    with _told_run(world, words) as (config, facts):
        meeting.stage("looking at its host")
        cpu = config is not None and config.device == "cpu"
        record = own_record(place, clock=clock, cpu=cpu, run=facts)
        roll = meeting.round("record", record.model_dump_json())
    if _lacks(world, roll) or not _judged(world, launch):
        return
    meeting.stage("adding up a tensor")
    trial = try_out(meeting, cpu=record.device.name == "cpu")
    if _lacks(world, meeting.round("trial", trial.model_dump_json())):
        return
    if world.tells:
        trials = {
            r: Trial.model_validate_json(text)
            for r, text in meeting.said("trial", range(place.world_size)).items()
        }
        world.trial = trial
        world.find(*judge_trial(world.records, trials, meeting.seconds))
    _agree(world)


def _lacks(world: World, roll: Roll, *, came: bool = True) -> bool:
    """Whether a round was not complete; the rank that tells notes who did not come, or came and fell silent."""
    world.speaker = roll.speaker
    place, meeting = world.place, world.meeting
    if not roll.missing:
        return False
    world.failed = True
    if place.rank in roll.missing:
        raise WorldError(
            f"rank {place.rank} came after the {meeting.seconds:.0f} s that the others waited: raise seconds="
        )
    if world.tells:
        everybody = range(place.world_size)
        hellos = meeting.said("here", everybody)
        if came:
            world.find(silent(roll.missing, hellos, meeting.said("stage", everybody), meeting.seconds))
        else:
            twice = meeting.said("twice", everybody)
            world.find(absent(roll.missing, hellos, place, meeting.seconds, twice=twice))
    return True


@contextmanager
def _told_run(world: World, words: Sequence[str]) -> Iterator[tuple["RunConfig | None", RunFacts | None]]:
    """The run's settings and what this rank makes of them. A file of rank 0 lies in the run's place meanwhile."""
    if not words:
        yield None, None
        return
    place, meeting = world.place, world.meeting
    meeting.stage(f"reading the settings {' '.join(words)}")
    try:
        config = read_run(words)
    except (EssaError, OSError) as error:
        meeting.say("token", "")
        yield None, RunFacts(failures=str(error).splitlines())
        return
    facts = run_facts(config, meeting.stage, first_on_node=place.local_rank in (0, None))
    meeting.stage(f"looking for out={config.out}")
    if place.rank != 0:
        token = meeting.hear("token", meeting.seconds)
        yield config, facts.model_copy(update={"sees_out": sees(Path(token)) if token else None})
        return
    path = None
    try:
        path = write_token(config.out) if config.out != MISSING else None
    except OSError as error:
        facts.failures.append(f"out={config.out}: {error.strerror}: choose a folder that rank 0 can write to")
    meeting.say("token", str(path or ""))
    try:
        yield config, facts
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _judged(world: World, launch: str | None) -> bool:
    """Judge the records, on the rank that tells; whether the collectives are worth trying, on every rank."""
    meeting, place = world.meeting, world.place
    if world.tells:
        told = meeting.said("record", range(place.world_size))
        world.records = [RankRecord.model_validate_json(text) for text in told.values()]
        numbers, name = asked(launch)
        world.find(*launch_file(place.world_size, n_nodes(world.records), numbers, name))
        world.find(*judge(world.records), *judge_run(world.records))
        meeting.say("plan", "stop" if any(f.stops for f in world.findings) else "go")
    if meeting.hear("plan", meeting.seconds) == "go":
        return True
    world.failed = True
    return False


def _agree(world: World) -> None:
    """Whether something was found, from the rank that tells to all others: every rank ends alike."""
    if world.tells:
        world.meeting.say("verdict", "failed" if world.failed else "ok")
    world.failed = world.meeting.hear("verdict", world.meeting.seconds) != "ok"
