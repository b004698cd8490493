"""A run of ``essa adapt``, to be planned."""

import torch

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import Backbone
from essa_dist.backbones.build import build_architecture
from essa_dist.data.batch import Batch, check_channels
from essa_dist.data.views import N_GLOBAL
from essa_dist.engine.config import RunConfig
from essa_dist.errors import EssaError
from essa_dist.objectives import DINOv2Objective, Objective
from essa_dist.planning.subject import Subject, packed_here, without_values


class Adaptation(Subject[RunConfig]):
    """See :class:`Subject`."""

    def trunk(self) -> Backbone:
        """See :class:`Subject`."""
        run = self.run
        check_channels(run.backbone.in_chans)
        with torch.device("meta"):
            backbone = build_architecture(run.backbone)
        inject_adapter(backbone, without_values(run.adapter), seed=run.seed)
        return backbone

    def objective(self, backbone: Backbone, dtype: torch.dtype) -> DINOv2Objective:
        """See :class:`Subject`."""
        return DINOv2Objective(backbone, self.run.objective, compute_dtype=dtype)

    def batch(self, images: int, backbone: Backbone, dtype: torch.dtype) -> Batch:
        """See :class:`Subject`."""
        crops, channels = self.run.data.crops, self.run.backbone.in_chans
        size, small = crops.global_size, crops.local_size
        return Batch(
            global_crops=torch.empty(N_GLOBAL, images, channels, size, size, dtype=dtype),
            local_crops=torch.empty(crops.n_local, images, channels, small, small, dtype=dtype),
            masks=torch.empty(N_GLOBAL, images, (size // backbone.patch_size) ** 2, dtype=torch.bool),
            keys=(),
            step=0,
        )

    def masked(self, patch_size: int) -> float:
        """See :class:`Subject`."""
        if not self.run.objective.ibot_weight:
            return 0.0
        masks, crops = self.run.data.masks, self.run.data.crops
        share = masks.probability * (masks.ratio_min + masks.ratio_max) / 2
        return float(N_GLOBAL * (crops.global_size // patch_size) ** 2 * share)

    def samples(self, images: int | None) -> int | None:
        """See :class:`Subject`."""
        data = self.run.data
        if images is not None or data.order != "plan" or packed_here(data.train) is None:
            return images
        try:
            return len(data.open())
        except EssaError:
            return None

    @property
    def crops(self) -> str:
        """See :class:`Subject`."""
        crops = self.run.data.crops
        local = f" + {crops.n_local} x {crops.local_size}" if crops.n_local else ""
        return f"{N_GLOBAL} x {crops.global_size}{local} px"

    def surveys(self, objective: Objective) -> bool:
        """See :class:`Subject`."""
        assert isinstance(objective, DINOv2Objective)
        return objective.surveys
