"""What transformers keeps beside the tensors: ``config.json`` and ``preprocessor_config.json``."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from essa_dist.errors import WeightsError

MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae", "vit_msn")
"""``model_type`` of ``config.json`` of the models whose names we know."""


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of the folder ``path``, or of the folder that the file ``path`` is in; empty without one."""
    file = (path if path.is_dir() else path.parent) / name
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} can't be read: {error}") from error
    return held if isinstance(held, dict) else {}


def fit_config(config: dict[str, Any], vit: Any) -> tuple[str, ...]:
    """Set the epsilon of ``vit``'s norms as ``config`` says; remarks on what was changed.

    Raises WeightsError where the shapes of tensors would hide a difference: heads, activation, rotary base.
    """
    if config.get("model_type", MODEL_TYPES[0]) not in MODEL_TYPES:
        raise WeightsError(
            f"model_type {config['model_type']} of config.json is none of {', '.join(MODEL_TYPES)}"
        )
    own = {
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "hidden_act": _activation(vit.blocks[0].mlp.act),
        "rope_theta": getattr(getattr(vit, "rope", None), "temperature", None),
    }
    if config.get("use_swiglu_ffn"):
        own["hidden_act"] = None  # DINOv2's gate is always SiLU, whatever hidden_act says
    for key, value in own.items():
        if value is not None and config.get(key, value) != value:
            raise WeightsError(f"{key} is {config[key]} in config.json, and {value} in this architecture")
    return _set_eps(vit, config.get("layer_norm_eps"))


def _activation(act: nn.Module) -> str:
    tanh = getattr(act, "approximate", "none") == "tanh"
    return "gelu_pytorch_tanh" if tanh else type(act).__name__.lower()


def _set_eps(vit: Any, eps: float | None) -> tuple[str, ...]:
    norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
    was = norms[0].eps
    if eps is None or eps == was:
        return ()
    for norm in norms:
        norm.eps = eps
    return (f"epsilon of norms set to {eps:g} from config.json (timm: {was:g})",)


def pixel_statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of pixels (0..1) from ``preprocessor_config.json``; None without them."""
    config = read_config(path, "preprocessor_config.json")
    mean, std = config.get("image_mean"), config.get("image_std")
    return (tuple(mean), tuple(std)) if isinstance(mean, list) and isinstance(std, list) else None
