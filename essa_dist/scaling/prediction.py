"""What the planner says of a study's jobs, at the sizes that were run and beyond.

On the device that was measured, the share of the roofline that computing reaches is taken from the smallest size, so that
size is no test of it and all others are. On another device nothing is known, and the range is that of ``essa plan``.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from essa_dist.engine.build import DTYPES
from essa_dist.engine.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.planning.choices import Case, Choices
from essa_dist.planning.devices import CPU, Device, known_as, measured_cpu, parse, read_table
from essa_dist.planning.layouts import LAYOUTS
from essa_dist.planning.speed import SHARES
from essa_dist.scaling.config import ScaleConfig
from essa_dist.scaling.jobs import batch_of

GLOO = "gloo"


@dataclass(frozen=True)
class Point:
    """A job as the planner sees it."""

    strategy: str
    mode: str
    processes: int
    batch_size: int
    device: str
    calibrated: bool
    """Whether the share of the roofline was measured, on this device."""
    seconds: tuple[float, float]
    """Of an update: nothing of the communication hidden behind computing, and all that can be."""
    fits: bool
    price: float

    @property
    def middle(self) -> float:
        """The geometric mean of ``seconds``."""
        return sqrt(self.seconds[0] * self.seconds[1])


class Planner:
    """Of one study. Raises UsageError for names that the planner's table lacks."""

    def __init__(self, config: ScaleConfig, run: RunConfig) -> None:
        self.config, self.run = config, run
        self.table = read_table(config.table)
        self._choices: dict[str, Choices] = {}
        if config.devices:
            parse(config.devices, self.table)
        self.table.interconnect(config.interconnect)

    def measured_device(self, name: str) -> str | None:
        """The table's name of the device that a job reports; None: it isn't there."""
        return CPU if name == "cpu" else known_as(name, self.table)

    def price(self, device: str) -> float:
        """Of one device and hour."""
        return self.table.device(device).price if self.config.price is None else self.config.price

    def point(
        self, strategy: str, mode: str, processes: int, device: str, reached: float | None
    ) -> Point | None:
        """``reached``: the measured share of the roofline. None where the planner doesn't know the strategy or the device's speed."""
        if strategy not in LAYOUTS:
            return None
        batch = batch_of(mode, self.run.batch_size, processes)
        entry = self._entry(device)
        if self.run.precision not in entry.tflops or batch % (processes * self.run.accumulate):
            return None
        case = Case(device, processes, entry, self.price(device))
        row = self._of(device).with_batch(batch).row(case, strategy)
        assert row.speed is not None
        slow, fast = (row.speed.computing / share for share in ((reached, reached) if reached else SHARES))
        seconds = (slow + row.speed.sending, max(fast, row.speed.sending))
        fits = row.fits or device == CPU  # of ranks on many CPUs nobody knows how many share a machine
        return Point(strategy, mode, processes, batch, device, reached is not None, seconds, fits, case.price)

    def reached(self, row: dict[str, Any], device: str) -> float | None:
        """The share of the roofline at which a measured row computes."""
        split = row["split_s"]
        computing = row["step_s"] - split["data"] - split["communication"]
        point = self.point(row["strategy"], row["mode"], row["processes"], device, 1.0)
        return None if point is None or computing <= 0 else min(point.seconds[1] / computing, 1.0)

    def _of(self, device: str) -> Choices:
        if device not in self._choices:
            network = self.table.interconnect(GLOO if device == CPU else self.config.interconnect)
            self._choices[device] = Choices(self.run, network, per_machine=self.config.per_machine)
        return self._choices[device]

    def _entry(self, device: str) -> Device:
        if device == CPU and not self.table.devices[CPU].tflops:
            found = measured_cpu(self.table.device(CPU), DTYPES[self.run.precision])
            self.table = self.table.model_copy(update={"devices": self.table.devices | {CPU: found}})
        return self.table.device(device)


def predictions(planner: Planner, rows: list[dict[str, Any]]) -> list[Point]:
    """At all sizes, run and not, of all curves whose smallest size was measured; and on the device that was asked for."""
    config, found = planner.config, []
    base = min(config.sizes)
    sizes = sorted({*config.sizes, *config.predict})
    for row in [row for row in rows if row["processes"] == base and row.get("step_s")]:
        device = planner.measured_device(row["device"])
        curve = (row["strategy"], row["mode"])
        if device is not None and (share := planner.reached(row, device)) is not None:
            found += [planner.point(*curve, n, device, share) for n in sizes]
        if config.devices and config.devices != device:
            found += [planner.point(*curve, n, config.devices, None) for n in sizes]
    return [point for point in found if point is not None]


def check(config: ScaleConfig) -> None:
    """Raises UsageError for a device with a number in front: sizes are given by ``predict``."""
    if config.devices and parse(config.devices, read_table(config.table))[1] != 1:
        raise UsageError(f"devices={config.devices}: name one device, as h100; predict=4,8 says how many")
