"""What ``essa finetune`` can be told."""

from typing import Self

from pydantic import Field, model_validator

from essa_dist.adapters import AdapterConfig
from essa_dist.adapters.apla import APLAConfig
from essa_dist.data.labelled.loader import LabelledDataConfig
from essa_dist.data.labelled.mixing import MixingConfig
from essa_dist.engine.config import JobConfig
from essa_dist.engine.optim import OptimConfig
from essa_dist.engine.schedules import Duration
from essa_dist.finetune.validation import ValidationConfig
from essa_dist.heads.pooled import PooledHeadConfig
from essa_dist.heads.segmentation import DecoderConfig
from essa_dist.heads.segmentation.linear import LinearDecoderConfig
from essa_dist.settings import Config
from essa_dist.tasks import AutoConfig, TaskConfig


class SupervisedScheduleConfig(Config):
    warmup: Duration = 0
    """Linear warm-up of the learning rates: updates, or epochs as in 10ep; so are all durations here."""
    head_warmup: Duration = 0
    """Train only the head this long first."""


class TestConfig(Config):
    __test__ = False  # no test of pytest's

    enabled: bool = True
    """Predict the test images once, at the end, with the checkpoint that validation chose; where there are any."""
    resamples: int = Field(1000, ge=0)
    """Of the bootstrap that gives 95 % intervals, over patients where they are known (0: no intervals)."""


class FinetuneConfig(JobConfig):
    """Everything that ``essa finetune`` can be told."""

    model: str = ""
    """What to start from, in place of ``backbone``: a run of `essa adapt` (its teacher) or of `essa finetune`, an export, a
    weights file, a timm name, or any of them `+ADAPTER`; see `essa evaluate`. Empty: what ``backbone`` says."""
    keep_adapter: bool = False
    """The adapter of ``model``, a run, stays as frozen modules of its own, and ``adapter`` is put on top (false: it is
    merged into the trunk first; prompts of vpt and bottlenecks of adaptformer can't be, and the same adapter trains them on,
    any other leaves them frozen)."""
    adapter: AdapterConfig = APLAConfig()
    """What is trained of the trunk; `frozen`: the head only, a linear probe with augmentation."""
    task: TaskConfig = AutoConfig()
    """What is learnt; auto: by the labels of the training images."""
    head: PooledHeadConfig = PooledHeadConfig()
    """The head of tasks that judge whole images."""
    decoder: DecoderConfig = LinearDecoderConfig()
    """The head of segmentation."""
    data: LabelledDataConfig = LabelledDataConfig()
    """Labelled images."""
    mixing: MixingConfig = MixingConfig()
    """Mixup, CutMix and label smoothing."""
    optim: OptimConfig = OptimConfig(lr=1e-4)
    """The optimizer."""
    schedule: SupervisedScheduleConfig = SupervisedScheduleConfig()
    """What changes over the run."""
    validation: ValidationConfig = ValidationConfig()
    """When the validation images are predicted, and what follows from it."""
    test: TestConfig = TestConfig()
    """The judgement at the end."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.keep_adapter and not self.model:
            raise ValueError("keep_adapter=true keeps the adapter of a run: name it, as model=RUN")
        return self
