"""The layout of facebookresearch/dinov2: the file that its code loads with ``load_state_dict(strict=True)``."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.eva import Eva

from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.backbones.formats.dinov2 import from_timm
from essa_dist.backbones.formats.names import no_place
from essa_dist.export.interface import MODEL_CONFIG, WEIGHTS, Reader, Subject
from essa_dist.export.shape import shape_of

LIBRARY, READER = "timm", "a trunk read back from DINOv2's layout"
TORCH_FILE = "dinov2_pretrain.pth"
FILES: tuple[str, ...] = (WEIGHTS, TORCH_FILE, MODEL_CONFIG)
TOLERANCE = 1e-5
PLAIN = True
WHOLE = True
RESIZING = "DINOv2's resizing of position embeddings"

NORM_EPS = 1e-6
"""Written into DINOv2's code (``DinoVisionTransformer.__init__``), so a trunk with another can't be held."""

USAGE = """\
In this folder, with the code of github.com/facebookresearch/dinov2 on Python's path:

```python
import torch
from dinov2.models.vision_transformer import DinoVisionTransformer
model = DinoVisionTransformer({arguments})
model.load_state_dict(torch.load("dinov2_pretrain.pth", weights_only=True), strict=True)
features = model.eval().forward_features(images)
cls, patches = features["x_norm_clstoken"], features["x_norm_patchtokens"]
```

`dinov2_pretrain.pth` and `model.safetensors` hold the same tensors. The comparison below read both back into the run's own
architecture; DINOv2's code was not there to be tried.
"""


def write(folder: Path, subject: Subject) -> None:
    """The same tensors twice, as safetensors and as DINOv2 publishes them: a dictionary saved by ``torch.save``."""
    backbone = subject.backbone
    _arguments(subject)  # refuses what only DINOv2's code, not the tensors, would get wrong
    state = from_timm(dict(backbone.vit.state_dict()) | {"mask_token": backbone.mask_token}, backbone.vit)
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    torch.save(state, folder / TORCH_FILE)
    own = subject.own | {"mean": backbone.mean, "std": backbone.std}
    settings = {"architecture": backbone.name.split(".")[0], "backbone": own}
    (folder / MODEL_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Reader]:
    """Both files, by this library's reading of DINOv2's layout and with DINOv2's rule for other sizes."""
    own = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))["backbone"] | {
        "pos_embed": "dinov2"
    }
    return [
        build_backbone(BackboneConfig(**own, weights=str(folder / file))).eval()
        for file in (WEIGHTS, TORCH_FILE)
    ]


def usage(subject: Subject) -> str:
    """The call of the official constructor that gives this shape."""
    arguments = _arguments(subject)
    return USAGE.format(arguments=", ".join(f"{name}={value!r}" for name, value in arguments.items()))


def _arguments(subject: Subject) -> dict[str, Any]:
    vit = subject.backbone.vit
    if isinstance(vit, Eva):
        raise no_place("DINOv2's layout", ["rotary position embeddings"])
    shape = shape_of(vit, "DINOv2's layout")
    if shape.norm_eps != NORM_EPS:
        raise no_place("DINOv2's layout", [f"the epsilon {shape.norm_eps:g} of the norms"])
    arguments: dict[str, Any] = {
        "img_size": subject.backbone.image_size,
        "patch_size": subject.backbone.patch_size,
        "in_chans": subject.in_chans,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": shape.mlp_ratio,
        "qkv_bias": shape.qkv_bias,
        "init_values": 1.0 if shape.layer_scale else None,
        "ffn_layer": "swiglu" if shape.swiglu else "mlp",
        "block_chunks": 0,
    }
    return arguments | ({"num_register_tokens": shape.registers} if shape.registers else {})
