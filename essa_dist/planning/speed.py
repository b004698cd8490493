"""How long a step takes: each operation at the speed of arithmetic or of memory, whichever is slower, and the network.

That is a roofline, which no kernel quite reaches; the range is between the shares of it that are usual. Nothing here was
measured on the device that is asked about.
"""

from dataclasses import dataclass

import numpy as np

from essa_dist.planning.devices import Device, Interconnect
from essa_dist.planning.fake import Seen
from essa_dist.planning.layouts import Layout
from essa_dist.planning.memory import is_offloaded
from essa_dist.planning.sizes import Floats, Load, Sizes
from essa_dist.planning.tracker import HEADS

SHARES = (0.4, 0.75)
"""Of the roofline that training steps of transformers reach: an assumption, between plain and well fused kernels."""


@dataclass(frozen=True)
class Speed:
    """Of one update."""

    seconds: tuple[float, float]
    """Slow, fast."""
    sent: float
    """Bytes that a rank sends."""
    sending: float
    """Seconds on the network alone."""
    flops: float
    """Of a rank."""
    computing: float
    """Seconds of the roofline alone, which nothing reaches."""


class Work:
    """The arithmetic of a step that was seen."""

    def __init__(self, seen: Seen, accumulate: int, *, recompute: bool = False) -> None:
        self.seen, self.accumulate = seen, accumulate
        operations = seen.tracker.operations
        self.flops = Sizes([o.flops for o in operations])
        self.moved = Sizes([o.moved for o in operations])
        self.matrix = np.array([o.matrix for o in operations])
        self.eight = np.array([o.eight for o in operations])
        self.offloaded = Sizes([b.size for b in seen.tracker.blocks if seen.offloads and is_offloaded(b)])
        # Of the micro-batches of an update at most two were run.
        repeated = accumulate / seen.micro_batches
        survey = accumulate > seen.micro_batches == 1 and seen.surveys
        self.times = np.array(
            [
                0.0
                if o.phase == "between"
                else 1.0
                if o.phase == "update"
                # The survey's pass of the student costs what the teacher's does; recomputing, what the block did.
                else repeated
                * (
                    1
                    + (survey and o.phase == "forward" and not o.grad and o.where != HEADS)
                    + (recompute and o.inside > 0)
                )
                for o in operations
            ]
        )

    def flops_at(self, load: Load) -> float:
        """Products of matrices in one update of a rank; the micro-batch is ``load``."""
        return float((self.flops.at(load) * self.times)[self.matrix].sum())

    def _roofline(self, load: Load, device: Device, precision: str) -> float:
        rate = np.where(
            self.eight, device.tflops.get("fp8", device.tflops[precision]), device.tflops[precision]
        )
        arithmetic: Floats = self.flops.at(load) / (1e12 * rate)
        memory = self.moved.at(load) / (1e9 * device.bandwidth_gbs)
        seconds = np.where(self.matrix, np.maximum(arithmetic, memory), memory)
        return float((seconds * self.times).sum())

    def speed(
        self,
        load: Load,
        layout: Layout,
        device: Device,
        network: Interconnect,
        *,
        precision: str,
        per_machine: int,
        gloo: bool = False,
    ) -> Speed:
        """One update under ``layout``; at best sending is hidden behind computing, at worst it is not."""
        sent = layout.sent(self.seen, self.accumulate, gloo=gloo)
        inside = layout.ranks <= per_machine
        rate = device.link_gbs if inside else min(device.link_gbs, network.gbs)
        sending = sent / (1e9 * rate) + (network.latency_s * 2 * np.log2(layout.ranks) if sent else 0.0)
        ideal = self._roofline(load, device, precision)
        # Going to the host may hide behind computing; coming back is waited for.
        carrying = self.accumulate * float(self.offloaded.at(load).sum()) / (1e9 * device.host_gbs)
        slow, fast = ideal / SHARES[0] + 2 * carrying, ideal / SHARES[1] + carrying
        return Speed((slow + sending, max(fast, sending)), sent, float(sending), self.flops_at(load), ideal)
