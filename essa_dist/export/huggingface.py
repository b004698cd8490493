"""transformers' layout: a folder that ``AutoModel.from_pretrained`` loads, without code of ours.

``Dinov2Model`` for plain ViTs, ``Dinov2WithRegistersModel`` for those with registers, ``DINOv3ViTModel`` for timm's
``Eva`` with DINOv3's rotary embedding.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor

from essa_dist.backbones import Backbone, Features
from essa_dist.backbones.formats.huggingface import from_timm
from essa_dist.backbones.formats.names import no_place
from essa_dist.errors import EssaError
from essa_dist.export.interface import MODEL_CONFIG, WEIGHTS, Reader, Subject
from essa_dist.export.shape import shape_of

LIBRARY, READER = "transformers", "transformers"
PREPROCESSOR = "preprocessor_config.json"
FILES: tuple[str, ...] = (WEIGHTS, MODEL_CONFIG, PREPROCESSOR)
TOLERANCE = 1e-5
PLAIN = True
WHOLE = True
RESIZING = "transformers' own resizing of position embeddings"

USAGE = """\
In this folder:

```python
from transformers import AutoModel
model = AutoModel.from_pretrained(".").eval()
tokens = model(pixel_values=images).last_hidden_state
cls, patches = tokens[:, 0], tokens[:, {prefix}:]
```

The model is transformers' own `{architecture}`. `AutoImageProcessor.from_pretrained(".")` prepares images.
"""


def write(folder: Path, subject: Subject) -> None:
    """Configuration, weights with the mask token, and preprocessing."""
    backbone = subject.backbone
    state = dict(backbone.vit.state_dict()) | {"mask_token": backbone.mask_token}
    renamed = from_timm(state, backbone.vit)
    config = _config(backbone)
    config.architectures = [_architecture(backbone)]
    config.save_pretrained(folder)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in renamed.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / PREPROCESSOR).write_text(json.dumps(_preprocessing(subject), indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Reader]:
    """Raises EssaError if transformers had to leave out or make up a tensor."""
    from transformers import AutoModel
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, notes = AutoModel.from_pretrained(str(folder), output_loading_info=True, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    model.eval()
    if wrong := {kind: found for kind, found in notes.items() if found}:
        raise EssaError(f"transformers does not take all tensors of the export: {wrong}; nothing was written")
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)

    def read(images: Tensor) -> Features:
        tokens = model(pixel_values=images).last_hidden_state
        return Features(tokens[:, 0], tokens[:, prefix:])

    return [read]


def usage(subject: Subject) -> str:
    """One way, by folder."""
    backbone = subject.backbone
    return USAGE.format(prefix=backbone.num_prefix_tokens, architecture=_architecture(backbone))


def _architecture(backbone: Backbone) -> str:
    if isinstance(backbone.vit, Eva):
        return "DINOv3ViTModel"
    return "Dinov2WithRegistersModel" if backbone.num_prefix_tokens > 1 else "Dinov2Model"


def _config(backbone: Backbone) -> Any:
    from transformers import Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig

    if isinstance(backbone.vit, Eva):
        return DINOv3ViTConfig(**_input(backbone), **_dinov3_settings(backbone.vit))
    if backbone.num_prefix_tokens > 1:
        registers = backbone.num_prefix_tokens - 1
        return Dinov2WithRegistersConfig(
            **_input(backbone), **_dinov2_settings(backbone.vit), num_register_tokens=registers
        )
    return Dinov2Config(**_input(backbone), **_dinov2_settings(backbone.vit), use_mask_token=True)


def _input(backbone: Backbone) -> dict[str, Any]:
    return {
        "image_size": backbone.image_size,
        "patch_size": backbone.patch_size,
        "num_channels": backbone.vit.patch_embed.proj.in_channels,
        "dtype": "float32",
    }


def _dinov2_settings(vit: Any) -> dict[str, Any]:
    shape = shape_of(vit, "Dinov2Model")
    if shape.mlp_ratio != int(shape.mlp_ratio):
        raise no_place("Dinov2Model", [f"the mlp_ratio {shape.mlp_ratio:g}, which is no whole number,"])
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "mlp_ratio": int(shape.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": shape.norm_eps,
        "qkv_bias": shape.qkv_bias,
        "use_swiglu_ffn": shape.swiglu,
    }


def _dinov3_settings(vit: Any) -> dict[str, Any]:
    block = vit.blocks[0]
    gated = hasattr(block.mlp, "fc1_g")
    return {
        "hidden_size": vit.embed_dim,
        "intermediate_size": block.mlp.fc2.in_features,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "silu" if gated else "gelu",
        "use_gated_mlp": gated,
        "layer_norm_eps": block.norm1.eps,
        "rope_theta": float(vit.rope.temperature),
        "query_bias": True,  # zeros where timm has none
        "key_bias": False,
        "value_bias": True,
        "proj_bias": block.attn.proj.bias is not None,
        "mlp_bias": block.mlp.fc2.bias is not None,
        "num_register_tokens": vit.num_prefix_tokens - 1,
    }


def _preprocessing(subject: Subject) -> dict[str, Any]:
    """The whole image, squeezed into a square, as evaluation shows it."""
    size = {"height": subject.backbone.image_size, "width": subject.backbone.image_size}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": subject.in_chans == 3,
        "do_resize": True,
        "size": size,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(subject.backbone.mean),
        "image_std": list(subject.backbone.std),
    }
