"""timm's layout: a weights file under timm's parameter names and the ``config.json`` of its hub folders."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import parse_model_name
from torch import Tensor, nn

from essa_dist.backbones import Backbone, Features
from essa_dist.export.interface import MODEL_CONFIG, WEIGHTS, Reader, Subject

LIBRARY, READER = "timm", "plain timm"
FILES: tuple[str, ...] = (WEIGHTS, MODEL_CONFIG)
TOLERANCE = 1e-5
PLAIN = True
WHOLE = True
RESIZING = "timm's own resizing of position embeddings"

USAGE = """\
In this folder:

```python
import timm
model = timm.create_model("local-dir:.", pretrained=True).eval()
features = model(images)
```

A timm that does not know `local-dir:` takes this in place of the second line:

```python
model = timm.create_model("{architecture}", num_classes=0, checkpoint_path="model.safetensors"{arguments}).eval()
```

`features` is [B, {width}], the class token after the final norm; `model.forward_features(images)` has all tokens,
patches from index {prefix} on. `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` prepares images.
"""


def write(folder: Path, subject: Subject) -> None:
    """Weights as ``vit`` names them, without the mask token, which timm has no place for."""
    vit = subject.backbone.vit
    state = {name: tensor.detach().contiguous() for name, tensor in vit.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    settings = timm_config(subject.backbone) | {"backbone": subject.own}
    (folder / MODEL_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Reader]:
    """By its weights file and, where this timm can, by its folder."""
    settings = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    file = str(folder / WEIGHTS)
    models = [
        timm.create_model(
            settings["architecture"], num_classes=0, checkpoint_path=file, **settings["model_args"]
        )
    ]
    if reads_folders():
        models.append(timm.create_model(f"local-dir:{folder}", pretrained=True))
    return [reader(model.eval()) for model in models]


def usage(subject: Subject) -> str:
    """Both ways, by folder and by file."""
    settings = timm_config(subject.backbone)
    return USAGE.format(
        architecture=settings["architecture"],
        arguments="".join(f", {name}={value!r}" for name, value in settings["model_args"].items()),
        width=settings["num_features"],
        prefix=subject.backbone.num_prefix_tokens,
    )


def reads_folders() -> bool:
    """Whether this version of timm knows ``local-dir:``."""
    try:
        return bool(parse_model_name("local-dir:x")[0] == "local-dir")
    except (AssertionError, ValueError):
        return False


def reader(model: Any) -> Reader:
    def read(images: Tensor) -> Features:
        tokens = model.forward_features(images)
        return Features(model.forward_head(tokens), tokens[:, model.num_prefix_tokens :])

    return read


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """``config.json`` in the layout of timm's hub: the architecture, how it differs from timm's, and the input."""
    shipped: dict[str, Any] = getattr(backbone.vit, "pretrained_cfg", {})
    channels = backbone.vit.patch_embed.proj.in_channels
    first_conv = shipped.get("first_conv", "patch_embed.proj")
    return {
        "architecture": backbone.name.split(".")[0],
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "global_pool": "token",
        # timm takes the size of most architectures from its own registry, which a folder does not consult.
        "model_args": {**_unlike_timm(backbone), "img_size": backbone.image_size, "dynamic_img_size": True},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, backbone.image_size, backbone.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the whole image, as evaluation shows it
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "pool_size": None,
            # By this name timm would adapt a file of 3 channels to in_chans; older ones do so with any file.
            "first_conv": first_conv if channels == 3 else None,
            "classifier": shipped.get("classifier", "head"),
        },
    }


def _unlike_timm(backbone: Backbone) -> dict[str, Any]:
    """Arguments that timm's model of this name needs to get the backbone's shape; mostly none."""
    plain: Any
    with torch.device("meta"):  # costs no memory
        plain = timm.create_model(backbone.name, pretrained=False, num_classes=0)
    scaled = [_has_layer_scale(vit) for vit in (plain, backbone.vit)]
    channels = [vit.patch_embed.proj.in_channels for vit in (plain, backbone.vit)]
    differing = {
        "patch_size": (plain.patch_embed.patch_size[0], backbone.patch_size, backbone.patch_size),
        "init_values": (scaled[0], scaled[1], 1.0 if scaled[1] else None),  # the weights replace the number
        "global_pool": (plain.global_pool, "token", "token"),
        "in_chans": (channels[0], channels[1], channels[1]),
    }
    return {name: value for name, (theirs, ours, value) in differing.items() if theirs != ours}


def _has_layer_scale(vit: nn.Module) -> bool:
    return any(name.endswith((".ls1.gamma", ".gamma_1")) for name, _ in vit.named_parameters())
