"""The graph computes the model's features in onnxruntime, for any number of images, adapter modules included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from essa_dist.adapters import AdapterConfig
from essa_dist.adapters.adaptformer import AdaptFormerConfig
from essa_dist.adapters.apla import APLAConfig
from essa_dist.adapters.vpt import VPTConfig
from essa_dist.backbones import Backbone
from essa_dist.errors import UsageError
from essa_dist.export import onnx

Write = Callable[..., tuple[Path, dict[str, Any]]]


def run(folder: Path, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return [torch.from_numpy(t) for t in session.run(["cls", "patches"], {"images": images.numpy()})]


def images(n: int, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def assert_same_features(folder: Path, backbone: Backbone, given: Tensor) -> None:
    for found, wanted in zip(run(folder, given), backbone(given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_graph_takes_any_number_of_images_of_the_size_asked_for(
    small: Callable[..., Backbone], write: Write, card_code: Any, as_a_stranger: Any
) -> None:
    """At another size than the native one, DINOv2's resizing of position embeddings is in the graph."""
    backbone = small("registers")
    out, found = write(backbone, "onnx", image_size=24)
    assert found["max_difference"] <= 1e-5
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 24, 24])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("cls", ["batch", 24]),
        ("patches", ["batch", 36, 24]),
    ]
    for n in (1, 2, 5):
        assert_same_features(out, backbone, images(n, 24))
    (block,) = card_code(out)
    cls, patches = as_a_stranger(out, block, images(3, 24), ["cls", "patches"], torch_too=False)
    for seen, wanted in zip((cls, patches), backbone(images(3, 24)), strict=True):
        torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-5)
    assert "`patches` [B, 36, 24]" in (out / "README.md").read_text()


def test_rotary_trunks_are_exported(small: Callable[..., Backbone], write: Write) -> None:
    backbone = small("dinov3_gated")
    assert_same_features(write(backbone, "onnx")[0], backbone, images(4))


@pytest.mark.parametrize("config", [AdaptFormerConfig(), APLAConfig(rank=7), VPTConfig(tokens=3)])
def test_the_modules_of_an_adapter_are_in_the_graph(
    config: AdapterConfig, small: Callable[..., Backbone], adapted: Callable[..., Backbone], write: Write
) -> None:
    before = small("plain")
    backbone = adapted(small("plain"), config)
    assert not torch.allclose(backbone(images(2)).cls, before(images(2)).cls, atol=1e-2)
    out, found = write(backbone, "onnx")
    assert_same_features(out, backbone, images(2))
    assert found["merged"] is False
    assert "its modules are part of this model" in (out / "README.md").read_text()


def test_missing_packages_are_named(
    small: Callable[..., Backbone], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: name if name == "onnx" else None)
    with pytest.raises(UsageError, match=r"needs onnxscript, onnxruntime: pip install 'essa-dist\[onnx\]'"):
        write(small("plain"), "onnx")
