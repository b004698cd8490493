"""Whether plain timm computes the features of the run from an exported folder."""

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import parse_model_name
from torch import Tensor, nn

from essa_dist.backbones import Backbone
from essa_dist.errors import EssaError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of features in fp32, relative to the largest of them where that is above 1


def compare(weights: Path, backbone: Backbone, settings: dict[str, Any]) -> dict[str, float]:
    """Largest differences of class tokens between the backbone and plain timm, at the native size and at half.

    ``weights`` lies beside the export's ``config.json``, whose content is ``settings``. Raises ``EssaError`` if the
    difference at the native size is above ``TOLERANCE``; at half of it, it is only reported.
    """
    native = backbone.image_size
    half = max(1, native // 2 // backbone.patch_size) * backbone.patch_size
    plain = _load_plain(weights, settings)
    differences = [_difference(model, backbone, native) for model in plain]
    if not all(difference <= TOLERANCE for difference in differences):  # written so that NaN fails
        raise EssaError(
            f"plain timm computes other features from the export: they differ by {max(differences):.2g}, allowed is"
            f" {TOLERANCE:g}; nothing was written: compare timm's version ({timm.__version__}) with that of the run"
        )
    resized = _difference(plain[0], backbone, half)
    if resized > TOLERANCE:
        logger.warning(
            "at %d px timm's own resizing of position embeddings changes features by %.2g", half, resized
        )
    return {"max_difference": max(differences), "max_difference_resized": resized, "resized_to": half}


def _load_plain(weights: Path, settings: dict[str, Any]) -> list[nn.Module]:
    """The export as timm loads it: by its weights file and, where this timm can, by its folder."""
    models = [
        timm.create_model(
            settings["architecture"],
            num_classes=0,
            checkpoint_path=str(weights),
            **settings["model_args"],
        )
    ]
    if reads_folders():
        models.append(timm.create_model(f"local-dir:{weights.parent}", pretrained=True))
    return [model.eval() for model in models]


def reads_folders() -> bool:
    """Whether this version of timm knows ``local-dir:``."""
    try:
        return bool(parse_model_name("local-dir:x")[0] == "local-dir")
    except (AssertionError, ValueError):
        return False


@torch.no_grad()
def _difference(plain: nn.Module, backbone: Backbone, image_size: int) -> float:
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    ours: Tensor = backbone(images).cls
    return float((plain(images) - ours).abs().max() / ours.abs().max().clamp(min=1))
