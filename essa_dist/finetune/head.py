"""The untrained head of a task, and what a run predicts with it."""

from collections.abc import Callable

import torch
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.engine.build import Training
from essa_dist.errors import UsageError
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.objective import Predict
from essa_dist.heads.pooled import PooledHead
from essa_dist.heads.segmentation import Decoder, build_decoder
from essa_dist.inference.sliding import sliding_logits
from essa_dist.tasks import Task


def make_head(backbone: Backbone, task: Task, config: FinetuneConfig) -> PooledHead | Decoder:
    """The untrained head; from the seed alone. Raises UsageError for settings of another kind of head."""
    if task.kind == "segmentation":
        if not config.head.trunk_norm:
            raise UsageError("head.trunk_norm=false is for tasks that judge whole images: leave it out")
        return build_decoder(config.decoder, backbone, task.n_outputs, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PooledHead(backbone.embed_dim, task.n_outputs, config.head)


def predictor(config: FinetuneConfig, training: Training) -> Callable[[Tensor], Tensor]:
    """Logits of images as they are evaluated, through the module that the strategy wrapped."""

    def whole(images: Tensor) -> Tensor:
        logits: Tensor = training.strategy.model(Predict(images))
        return logits

    def windows(images: Tensor) -> Tensor:
        size, patch = config.data.image_size, training.objective.backbone.patch_size
        return sliding_logits(
            whole, images, crop=size, patch_size=patch, batch_size=config.validation.batch_size
        )

    return windows if config.data.evaluation == "native" else whole
