"""Which layouts fit on which device, which of them is cheapest, and the ways out where none fits."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from essa_dist.engine.config import JobConfig
from essa_dist.engine.saving.staging import BLOCK
from essa_dist.planning.devices import CPU, Device, Interconnect
from essa_dist.planning.fake import Seen, see_step
from essa_dist.planning.layouts import LAYOUTS, Layout
from essa_dist.planning.memory import STANDING, Memory, Peak
from essa_dist.planning.sets import nbytes
from essa_dist.planning.sizes import Load
from essa_dist.planning.speed import Speed, Work
from essa_dist.planning.subject import subject_of

GIB, MIB = 2**30, 2**20
CPU_LOSS = 0.15
"""What malloc holds and can't use, as a share of what comes and goes; measured by benchmarks/plan_accuracy.py."""
MOST = 2**16
"""Images of a micro-batch beyond which nobody looks."""


class Case(NamedTuple):
    """Devices to run on."""

    name: str
    ranks: int
    device: Device
    price: float

    @property
    def memory(self) -> float:
        """Bytes of one of them; ranks on a CPU share theirs."""
        return self.device.memory_gib * GIB / (self.ranks if self.name == CPU else 1)


@dataclass(frozen=True)
class Row:
    """One layout on one device."""

    layout: str
    problem: str = ""
    """Why it can't be run, whatever the memory."""
    fits: bool = False
    needs: float = 0.0
    """Bytes, with all that torch doesn't know of."""
    terms: dict[str, float] = field(default_factory=dict)
    """Bytes of which ``needs`` is the sum."""
    largest: int = 0
    """The largest batch over all ranks that fits, with the run's own accumulation."""
    speed: Speed | None = None
    ways: list[str] = field(default_factory=list)
    """What would make it fit, the cheapest first."""

    @property
    def dominates(self) -> str:
        """The largest term."""
        return max(self.terms, key=self.terms.__getitem__, default="")


class Choices:
    """Everything that can be asked of one run."""

    def __init__(
        self, run: JobConfig, network: Interconnect, *, per_machine: int, classes: int | None = None
    ) -> None:
        """``classes``: see :func:`~.subject.subject_of`."""
        self.run, self.network, self.per_machine, self.classes = run, network, per_machine, classes
        self.subject = subject_of(run, classes)
        self._seen: dict[tuple[bool, bool], Seen] = {}

    spread = LAYOUTS[1:]

    def with_batch(self, batch_size: int) -> "Choices":
        """The same run with another batch; what was seen of a step holds for it too."""
        other = self._with(self.run.model_copy(update={"batch_size": batch_size}))
        other._seen = self._seen
        return other

    def seen(self, case: Case) -> Seen:
        """A step, as this device makes it."""
        gpu = case.name != CPU
        fp8 = "fp8" in case.device.tflops and self.run.engine.trunk == "fp8"
        if (gpu, fp8) not in self._seen:
            self._seen[gpu, fp8] = see_step(self.run, gpu=gpu, fp8=fp8, classes=self.classes)
        return self._seen[gpu, fp8]

    def load(self, case: Case, images: float) -> Load:
        """A micro-batch of ``images``."""
        return Load(images, images * self.subject.masked(self.seen(case).patch_size))

    def tflop_per_image(self, case: Case) -> float:
        """Products of matrices, over the whole step."""
        work = Work(self.seen(case), self.run.accumulate)
        return work.flops_at(self.load(case, 1.0)) / self.run.accumulate / 1e12

    def best(self, case: Case) -> Row:
        """The layout that costs least of those that fit; else the one that needs least, with ways out."""
        names = ("single",) if case.ranks == 1 else self.spread
        rows = [self.row(case, name) for name in names]
        fitting = [row for row in rows if row.fits and row.speed is not None]
        if fitting:
            return min(fitting, key=lambda row: row.speed.seconds if row.speed else (0.0, 0.0))
        least = min(rows, key=lambda row: row.needs)
        return least if least.problem else self.with_ways(case, least)

    def row(self, case: Case, name: str) -> Row:
        """One layout, with the run's own settings."""
        local, rest = divmod(self.run.batch_size, case.ranks * self.run.accumulate)
        if rest:
            return Row(
                name,
                f"batch_size={self.run.batch_size} is not a multiple of {case.ranks} ranks x accumulate={self.run.accumulate}",
            )
        layout = Layout(name, case.ranks, self.run.shard_frozen)
        memory = Memory(self.seen(case), self.run.accumulate)
        peak = memory.peak(self.load(case, local), layout)
        terms = self.terms(case, peak)
        needs = sum(terms.values())
        return Row(
            name,
            fits=bool(needs <= case.memory),
            needs=needs,
            terms=terms,
            largest=self._largest(case, memory, layout, peak) * case.ranks * self.run.accumulate,
            speed=self._speed(case, layout, self.run.accumulate, local),
        )

    def terms(self, case: Case, peak: Peak) -> dict[str, float]:
        """Of a peak, and what lies outside of torch's own count."""
        if case.name == CPU:
            sets = self.seen(case).sets
            saved = sum(map(nbytes, (*sets.trained, *sets.teacher, *sets.moments)))
            moving = sum(peak.terms.get(name, 0.0) for name in peak.terms if name not in STANDING)
            return {
                **peak.terms,
                "fragmentation": CPU_LOSS * moving,
                "checkpoint's copy": -(-saved // BLOCK) * BLOCK,
                "Python and libraries": self.seen(case).rss,
            }
        device = case.device
        outside = {
            "libraries' workspace": device.workspace_mib * MIB,
            "CUDA context": device.context_mib * MIB,
        }
        return {**peak.terms, "fragmentation": peak.fragmentation, **outside}

    def _speed(
        self, case: Case, layout: Layout, accumulate: int, images: float, *, recompute: bool = False
    ) -> Speed:
        work = Work(self.seen(case), accumulate, recompute=recompute)
        return work.speed(
            self.load(case, images),
            layout,
            case.device,
            self.network,
            precision=self.run.precision,
            per_machine=self.per_machine,
            gloo=case.name == CPU,
        )

    def _needs(self, case: Case, memory: Memory, layout: Layout, images: float, loss: float) -> float:
        """Bytes; ``loss``: what fragmentation adds, as a share."""
        peak = memory.peak(self.load(case, images), layout, simulate=False)
        return sum(self.terms(case, peak).values()) + loss * peak.allocated

    def _largest(self, case: Case, memory: Memory, layout: Layout, peak: Peak) -> int:
        """Images of the largest micro-batch that fits; 0: not even one."""
        loss = peak.fragmentation / peak.allocated
        low, high = 0, 1
        while high <= MOST and self._needs(case, memory, layout, high, loss) <= case.memory:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._needs(case, memory, layout, middle, loss) <= case.memory
            low, high = (middle, high) if fits else (low, middle)
        return low

    def with_ways(self, case: Case, row: Row) -> Row:
        """The two quickest of the changes that make it fit."""
        layout = Layout(row.layout, case.ranks, self.run.shard_frozen)
        whole = self.run.batch_size // case.ranks
        loss = row.terms.get("fragmentation", 0.0) / max(1.0, row.needs)
        assert row.speed is not None
        now = row.speed.seconds[0]
        found: list[tuple[float, str]] = []
        for setting, choices, recompute in self.leaner:
            for accumulate in [k for k in range(self.run.accumulate, whole + 1) if whole % k == 0]:
                memory = Memory(choices.seen(case), accumulate, recompute=recompute)
                images = whole // accumulate
                if choices._needs(case, memory, layout, images, loss) > case.memory:
                    continue
                words = [setting] if setting else []
                words += [f"accumulate={accumulate}"] if accumulate != self.run.accumulate else []
                seconds = choices._speed(case, layout, accumulate, images, recompute=recompute).seconds[0]
                found.append((seconds, f"{' '.join(words)} (about {100 * (seconds / now - 1):+.0f} % time)"))
                break
        if not found:
            return replace(row, ways=[self._last_resort])
        return replace(row, ways=[words for _, words in sorted(found)[:2]])

    @cached_property
    def leaner(self) -> tuple["Leaner", ...]:
        """Settings that keep less for the backward pass. A step of each that is not computed from this one is seen anew:
        seconds, once for all devices."""
        return tuple(self._find_leaner())

    def _find_leaner(self) -> Iterator["Leaner"]:
        engine = self.run.engine
        yield Leaner("", self, False)
        if engine.fast and engine.keep == "exact":
            yield Leaner("engine.keep=8bit", self._with_engine(keep="8bit"), False)
        if self.run.backbone.checkpoint_activations or engine.recompute != "none":
            return
        if engine.fast:
            yield Leaner("engine.recompute=mlp", self._with_engine(recompute="mlp"), False)
        yield Leaner("backbone.checkpoint_activations=true", self, True)

    def _with_engine(self, **changes: Any) -> "Choices":
        engine = self.run.engine.model_copy(update=changes)
        return self._with(self.run.model_copy(update={"engine": engine}))

    def _with(self, run: JobConfig) -> "Choices":
        return Choices(run, self.network, per_machine=self.per_machine, classes=self.classes)

    @cached_property
    def _last_resort(self) -> str:
        smaller = "adapter=apla, " if self.run.adapter.model_dump()["kind"] == "full" else ""
        return f"nothing that keeps the batch: {smaller}more ranks with fsdp2, or a smaller backbone"


class Leaner(NamedTuple):
    """A way to keep less."""

    setting: str
    """In words; empty: as it is."""
    choices: Choices
    """What can be asked of a run with it ..."""
    recompute: bool
    """... and whether blocks are to be taken out of its step, which was seen without."""
