"""What changes over a run of supervised adaptation: learning rates, weight decay, what is trained."""

import logging

from essa_dist.engine.build import Training
from essa_dist.engine.schedules import cosine, in_steps, warmup_cosine
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.objectives import StepValues

log = logging.getLogger(__name__)

NEVER = {
    "warmup": "the learning rate never reaches optim.lr",
    "head_warmup": "nothing but the head is trained",
}


def values_at(step: int, config: FinetuneConfig, training: Training) -> StepValues:
    """The schedules at ``step``, from 0: warm-up, then a cosine; weight decay constant, or by a cosine to its end."""
    optim, schedule = config.optim, config.schedule
    epoch, total = training.steps_per_epoch, training.total_steps
    shape = (step, in_steps(schedule.warmup, epoch), total)
    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    decay = cosine(step, total, optim.weight_decay, end)
    return StepValues(
        lr=warmup_cosine(*shape, optim.lr, optim.min_lr),
        head_lr=warmup_cosine(*shape, optim.lr if optim.head_lr is None else optim.head_lr, optim.min_lr),
        weight_decay=decay,
        head_weight_decay=decay if optim.head_weight_decay is None else optim.head_weight_decay,
        adapter_frozen=step < in_steps(schedule.head_warmup, epoch),
    )


def warn_of_durations(config: FinetuneConfig, training: Training) -> None:
    """Say what would begin only behind the last step."""
    for name, consequence in NEVER.items():
        given, total = getattr(config.schedule, name), training.total_steps
        if in_steps(given, training.steps_per_epoch) >= total + (name == "warmup"):
            log.warning("schedule.%s=%s takes the whole run of %d steps: %s", name, given, total, consequence)
