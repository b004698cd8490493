"""RunConfig: everything that ``essa adapt`` can be told."""

from typing import Literal

from pydantic import Field, model_validator

from essa_dist.adapters import AdapterConfig
from essa_dist.adapters.apla import APLAConfig
from essa_dist.backbones import BackboneConfig
from essa_dist.data.loader import DataConfig
from essa_dist.engine.guard import GuardConfig
from essa_dist.engine.optim import OptimConfig
from essa_dist.engine.schedules import Duration, ScheduleConfig
from essa_dist.objectives import DINOv2Config
from essa_dist.settings import Config


class CheckpointConfig(Config):
    every: Duration = "1ep"
    """How often a checkpoint is written; the last step always writes one."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""


class RunConfig(Config):
    out: str
    """The run's folder; must not exist unless resume or overwrite says otherwise."""
    resume: bool = False
    """Go on from the newest complete checkpoint in ``out``, exactly where it stopped."""
    overwrite: bool = False
    """Delete the run that is in ``out`` first."""
    seed: int = Field(0, ge=0)
    """Everything random follows from it: sample order, augmentations, masks, heads, adapter rows."""
    duration: Duration = "10ep"
    """Length of the run: updates, or epochs as in 10ep."""
    batch_size: int = Field(64, ge=1)
    """Images per update over all processes and accumulation steps."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per update. To Sinkhorn and KoLeo they are separate batches: use it to fit in memory only."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What is computed in; trained tensors, their optimizer state and the teacher are kept in fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is one."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the training process (null: torch's choice)."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    ledger: bool = False
    """Record the sample keys of every step, for `essa data ledger`; some 30 bytes a sample."""
    backbone: BackboneConfig = BackboneConfig()
    """The vision transformer and its pretrained weights."""
    adapter: AdapterConfig = APLAConfig()
    """What is trained of it."""
    objective: DINOv2Config = DINOv2Config()
    """The self-supervised objective and its heads."""
    data: DataConfig = DataConfig()
    """Images, crops and masks."""
    optim: OptimConfig = OptimConfig()
    """AdamW."""
    schedule: ScheduleConfig = ScheduleConfig()
    """What changes over the run."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, how much to keep."""
    guard: GuardConfig = GuardConfig()
    """When to warn of collapse."""

    @model_validator(mode="after")
    def _possible(self) -> "RunConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}"
            )
        if self.objective.koleo_weight > 0 and self.batch_size // self.accumulate < 2:
            raise ValueError(
                f"batch_size={self.batch_size} with accumulate={self.accumulate} leaves less than 2 images for KoLeo, "
                "which compares images: raise batch_size or set objective.koleo_weight=0"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume=true and overwrite=true contradict each other: choose one")
        return self
