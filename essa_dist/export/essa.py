"""This library's own layout: the whole backbone with its adapter's modules, and what builds it again.

For adapters that can't be merged into plain weights; any other model can be written so too.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_architecture
from essa_dist.backbones.weights import file_sha256, misfits
from essa_dist.errors import WeightsError
from essa_dist.export.interface import MODEL_CONFIG, WEIGHTS, Reader, Subject

LIBRARY, READER = "essa-dist", "this library"
FORMAT = "essa"
FILES: tuple[str, ...] = (WEIGHTS, MODEL_CONFIG)
TOLERANCE = 1e-5
PLAIN = False
WHOLE = True
RESIZING = "the resizing of position embeddings"

USAGE = """\
In this folder, with this library (essa-dist):

```python
from essa_dist.export import load_model
model = load_model(".")
cls, patches = model(images)
```
"""


def write(folder: Path, subject: Subject) -> None:
    """Every tensor of the backbone and the settings of backbone and adapter."""
    backbone = subject.backbone
    state = {name: tensor.detach().contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "format": FORMAT,
        "architecture": backbone.name,
        "backbone": subject.own,
        "adapter": backbone.adapter_settings,
        "seed": backbone.adapter_seed,
        "image_size": backbone.image_size,
        "mean": backbone.mean,
        "std": backbone.std,
    }
    (folder / MODEL_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Reader]:
    """One way, by folder."""
    return [read(folder)]


def read(folder: Path) -> Backbone:
    """The backbone that was written into ``folder``, its adapter's modules in place; eval mode, nothing trainable.

    Raises WeightsError if the tensors are not those of the settings beside them.
    """
    settings: dict[str, Any] = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    own = settings["backbone"] | {"mean": settings["mean"], "std": settings["std"]}
    backbone = build_architecture(BackboneConfig(**own))
    if settings["adapter"] is not None:
        config = TypeAdapter(AdapterConfig).validate_python(settings["adapter"])
        inject_adapter(backbone, config, seed=settings["seed"])
        backbone.adapter_settings, backbone.adapter_seed = settings["adapter"], settings["seed"]
    state = load_file(folder / WEIGHTS)
    if wrong := misfits(backbone.state_dict(), state, here="its config.json"):
        raise WeightsError(f"weights file {folder / WEIGHTS} does not fit its config.json: {wrong}")
    backbone.load_state_dict(state)
    backbone.weights_source = f"export: {folder.name}"
    backbone.weights_sha256 = file_sha256(folder / WEIGHTS)
    return backbone.eval().requires_grad_(False)


def usage(subject: Subject) -> str:
    """One way, by folder."""
    return USAGE
