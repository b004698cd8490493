"""What ``essa scale`` can be told."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from essa_dist.settings import Config
from essa_dist.settings.words import Several

PARTS = ("data", "forward", "backward", "communication", "optimizer", "EMA", "other")
"""Of a step's time."""

Sizes = Several[Annotated[int, Field(ge=1)]]


class ScaleConfig(Config):
    """Words that are not named here are those of `essa adapt`: its config file and settings. `batch_size` is what one process
    takes when scaling is weak, and what all take together when it is strong. Without `data.train`, images are made."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    out: str
    """A folder for the results; what is in it of the same study is not measured again if resume=true."""
    sizes: Sizes = (1, 2)
    """Numbers of processes that are run, as 1,2,4,8; the smallest is what the others are compared with."""
    strategy: Several[str] = ("ddp",)
    """Files of launch/, as ddp,zero2,fsdp2."""
    mode: Literal["weak", "strong", "both"] = "weak"
    """weak: the same batch for each process; strong: the same batch for all."""
    launcher: str = ""
    """What starts the processes of a job, in place of Accelerate on this machine: a command that goes on with `-m MODULE ...`,
    in which {n} is the number of processes and {strategy} a name of `strategy`, as 'torchrun --nproc_per_node {n}'."""
    rounds: int = Field(3, ge=1)
    """How often each job is run; jobs take turns, so that a slow moment of the machine falls on all. Medians are told."""
    steps: int = Field(6, ge=3)
    """Updates that a job is timed over, behind as many to warm up; two more are profiled for the split of a step."""
    timeout_s: float = Field(1800.0, gt=0)
    """When a job that doesn't end is ended."""
    resume: bool = False
    """Go on with the study in `out`: what was measured stays, what failed is tried again."""
    overwrite: bool = False
    """Delete the study in `out` first."""
    dry_run: bool = False
    """Print the command of each job, to be started by hand where no launcher can be; resume=true then collects what they wrote."""
    predict: Sizes = ()
    """Numbers of processes that the planner is asked about, as 4,8,64; drawn, and marked as predicted."""
    devices: str = ""
    """The device of these predictions, a name of the planner's table as h100 (empty: the one that was measured on)."""
    table: str = ""
    """A YAML file of devices and interconnects of your own, as for `essa plan`."""
    interconnect: str = "infiniband_ndr"
    """What joins machines, as for `essa plan`."""
    per_machine: int = Field(8, ge=1)
    """Devices of one machine."""
    price: float | None = Field(None, ge=0)
    """What one device costs an hour, in any currency (null: the planner's table, whose prices are assumptions)."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.sizes or not self.strategy:
            raise ValueError("sizes and strategy each need at least one entry, as sizes=1,2 strategy=ddp")
        if self.resume and self.overwrite:
            raise ValueError("resume=true and overwrite=true contradict each other: choose one")
        return self

    @property
    def modes(self) -> tuple[Literal["weak", "strong"], ...]:
        return ("weak", "strong") if self.mode == "both" else (self.mode,)
