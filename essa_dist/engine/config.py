"""What a run can be told: every run, and ``essa adapt``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from essa_dist.adapters import AdapterConfig
from essa_dist.adapters.apla import APLAConfig
from essa_dist.backbones import BackboneConfig
from essa_dist.data.loader import DataConfig
from essa_dist.engine.fast import EngineConfig
from essa_dist.engine.optim import OptimConfig
from essa_dist.engine.recording.canary import CanaryConfig
from essa_dist.engine.recording.profile import ProfileConfig
from essa_dist.engine.recording.trackers import TrackerName
from essa_dist.engine.schedules import Duration, ScheduleConfig
from essa_dist.engine.watching.guard import CollapseGuardConfig, GuardConfig
from essa_dist.objectives import DINOv2Config
from essa_dist.settings import Config
from essa_dist.settings.words import Several


class CheckpointConfig(Config):
    every: Duration = "1ep"
    """How often a checkpoint is written; the last step always writes one (0: it alone)."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""


class JobConfig(Config):
    """What every run that trains can be told."""

    out: str
    """The run's folder; must not exist unless resume or overwrite says otherwise."""
    resume: bool = False
    """Go on from the newest complete checkpoint in ``out``, exactly where it stopped; start where there is none. So a job
    that may be requeued, or restarted by ``torchrun --max-restarts``, says it from the first time on."""
    overwrite: bool = False
    """Delete the run that is in ``out`` first."""
    seed: int = Field(0, ge=0)
    """Everything random follows from it: sample order, augmentations, masks, heads, adapter rows."""
    duration: Duration = "10ep"
    """Length of the run: updates, or epochs as in 10ep."""
    batch_size: int = Field(64, ge=1)
    """Images per update over all processes and accumulation steps."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per update, to fit in memory; the update is that of the whole batch."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What is computed in; trained tensors and all that is kept of them stay in fp32."""
    shard_frozen: bool = False
    """fsdp2: spread frozen tensors over ranks too. 2 bytes a number less on each rank, but gathered anew for each pass."""
    shared_trunk: str = ""
    """A folder of this machine, as /dev/shm/essa, through which all processes that train on its CPUs, ranks and the trials of
    a sweep, hold the frozen weights in memory once (empty: each holds its own). Its files can be deleted at any time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is one."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the training process (null: torch's choice)."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    communication_every: int = Field(50, ge=0)
    """Steps between two measurements of what ranks send each other and for how long, each in a logged step (0: never)."""
    track: Several[TrackerName] = ()
    """Other places for the rows of metrics.jsonl, as wandb,mlflow; each has an extra, as in pip install essa_dist[wandb]."""
    ledger: bool = False
    """Record the sample keys of every step, for `essa data ledger`; some 30 bytes a sample."""
    backbone: BackboneConfig = BackboneConfig()
    """The vision transformer and its pretrained weights."""
    adapter: AdapterConfig = APLAConfig()
    """What is trained of it."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    engine: EngineConfig = EngineConfig()
    """How a step is computed."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, how much to keep."""
    guard: GuardConfig = GuardConfig()
    """When to warn, and when to give up."""
    profile: ProfileConfig = ProfileConfig()
    """A few steps under torch's profiler."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume=true and overwrite=true contradict each other: choose one")
        if self.shared_trunk and self.engine.trunk_kept != "precision":
            raise ValueError(
                f"shared_trunk shares the trunk as it was read, and engine.trunk={self.engine.trunk} packs it anew in each "
                "process: choose one"
            )
        if self.shared_trunk and self.shard_frozen:
            raise ValueError(
                "shard_frozen=true spreads frozen weights over ranks, and shared_trunk keeps them once a machine: choose one"
            )
        return self


class RunConfig(JobConfig):
    """Everything that ``essa adapt`` can be told."""

    objective: DINOv2Config = DINOv2Config()
    """The self-supervised objective and its heads."""
    data: DataConfig = DataConfig()
    """Images, crops and masks."""
    schedule: ScheduleConfig = ScheduleConfig()
    """What changes over the run."""
    guard: CollapseGuardConfig = CollapseGuardConfig()
    """When to warn, of collapse too, and when to give up."""
    canary: CanaryConfig = CanaryConfig()
    """Looks at the teacher's features during the run, and what follows from them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        whole = self.objective.koleo_over == "update"
        if self.objective.koleo_weight > 0 and self.batch_size // (1 if whole else self.accumulate) < 2:
            raise ValueError(
                f"batch_size={self.batch_size} with accumulate={self.accumulate} leaves less than 2 images for KoLeo, "
                f"which compares images of one {self.objective.koleo_over}: raise batch_size or set objective.koleo_weight=0"
            )
        if self.objective.ibot_weight > 0 and self.data.masks.probability == 0:
            raise ValueError(
                "data.masks.probability=0 leaves iBOT nothing to predict: raise it or set objective.ibot_weight=0"
            )
        return self
