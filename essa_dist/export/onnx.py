"""An ONNX graph of images to class and patch tokens, for onnxruntime and others; an adapter's modules included.

The batch size is free, the image size is not: position embeddings become constants.
"""

import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from essa_dist.backbones import Backbone, Features
from essa_dist.errors import UsageError
from essa_dist.export.interface import Reader, Subject

LIBRARY, READER = "onnxruntime", "onnxruntime"
GRAPH = "model.onnx"
FILES: tuple[str, ...] = (f"{GRAPH}.data", GRAPH)
"""The first only where the weights exceed what a protobuf file holds (2 GB)."""
TOLERANCE = 5e-5  # measured: 5e-6 for ViT-Ti, 2e-6 for an untrained ViT-L; other kernels, other order of sums
PLAIN = False
WHOLE = True
RESIZING = ""
OPSET = 20
"""torch's own choice in 2.13; from it on GELU is one operator."""

USAGE = """\
In this folder:

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
cls, patches = session.run(["cls", "patches"], {{"images": images}})
```

`images` is a float32 array of numpy, `cls` is [B, {width}] and `patches` [B, {patches}, {width}]. B is free; the image size is
fixed: export again with `image_size=` for another.
"""


class _Tokens(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Features = self.backbone(images)
        return features.cls, features.patches


@torch.no_grad()
def write(folder: Path, subject: Subject) -> None:
    """Raises UsageError where the packages of the extra ``onnx`` are missing."""
    _require("onnx", "onnxscript", "onnxruntime")
    size = subject.image_size
    folding = logging.getLogger("onnxscript.optimizer")
    level = folding.level
    folding.setLevel(logging.ERROR)  # it warns of what it leaves as it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside torch.onnx
            program = torch.onnx.export(
                _Tokens(subject.backbone).eval(),
                (torch.zeros(2, subject.in_chans, size, size),),  # 2: a size of 1 would be taken for fixed
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["cls", "patches"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    finally:
        folding.setLevel(level)
    assert program is not None
    program.save(folder / GRAPH)


def load(folder: Path) -> list[Reader]:
    """A session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])

    def read(images: Tensor) -> Features:
        cls, patches = session.run(["cls", "patches"], {"images": images.numpy()})
        return Features(torch.from_numpy(cls), torch.from_numpy(patches))

    return [read]


def usage(subject: Subject) -> str:
    """One way, by file."""
    backbone = subject.backbone
    return USAGE.format(width=backbone.embed_dim, patches=(subject.image_size // backbone.patch_size) ** 2)


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"format=onnx needs {', '.join(missing)}: pip install 'essa-dist[onnx]'")
