"""Folders of Hugging Face PEFT, saved over a timm ViT by plain PEFT or by this library.

Any of PEFT's methods that change layers can be put over a trunk and merged.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from essa_dist.adapters.interface import Adapter
from essa_dist.backbones.vit import Backbone
from essa_dist.backbones.weights import misfits, parameters_sha256
from essa_dist.errors import UsageError, WeightsError

log = logging.getLogger(__name__)

SETTINGS, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
CLASSIFIER = "base_model.model.head."
TRUNK = "trunk_sha256"
"""In the metadata of folders that this library wrote: the hash of the base model."""


def is_peft_folder(path: Path) -> bool:
    return (path / SETTINGS).is_file()


def attach_peft(base: Backbone, folder: Path) -> tuple[Backbone, Adapter]:
    """A model over the parameters of ``base`` with the adapter in ``folder``: eval mode, nothing trainable, not merged.

    Nothing of ``base`` is written to: what the adapter changes of it (biases, the residual of PiSSA) is copied.
    Raises UsageError for a folder or a method that can't be used, WeightsError where it is of another architecture.
    """
    from peft import PeftModel, get_peft_model_state_dict

    config, tensors = read_peft(folder)
    _require_trunk(base, folder)
    backbone = base.over_the_same_parameters()
    with _lent_copies(backbone), _one_line(folder, backbone), torch.random.fork_rng(devices=[]):
        model = PeftModel.from_pretrained(backbone.vit, str(folder), config=config, torch_device="cpu")
        own: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
        # A bias may be absent, for PEFT leaves it as it is then; anything else that is not there was not loaded.
        own = {name: t for name, t in own.items() if name in tensors or not name.endswith(".bias")}
        if heads := [name for name in tensors if name.startswith(CLASSIFIER)]:
            log.info("PEFT folder %s: its classifier is left out, for features end before it", folder)
            tensors = {name: t for name, t in tensors.items() if name not in heads}
        if wrong := misfits(own, tensors, here=f"this method over {backbone.name}"):
            raise WeightsError(f"PEFT folder {folder} does not fit: {wrong}")
    backbone.adapter_settings = {"kind": f"peft:{config.peft_type.value.lower()}"}
    return backbone.requires_grad_(False).eval(), PEFTAdapter()


def read_peft(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's config and the tensors, by the names in the file; nothing in it is executed.

    Raises UsageError for a folder that is none, or of a method that does not change a ViT's layers.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    if not is_peft_folder(folder):
        raise UsageError(f"{folder} is not a PEFT folder: it has no {SETTINGS}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UsageError(f"PEFT folder {folder} has neither {' nor '.join(WEIGHTS)}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / SETTINGS} is of no method that this PEFT knows: {_first_line(error)}"
        ) from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise UsageError(
            f"PEFT folder {folder}: {config.peft_type.value} is for language models, not for a ViT"
        )
    try:
        tensors: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors and pickle have their own errors; all mean the same to the user
        raise WeightsError(f"PEFT folder {folder} can't be read: {_first_line(error)}") from error
    return config, tensors


class PEFTAdapter:
    """What ``attach_peft`` put into a backbone; it can be merged, and was trained elsewhere."""

    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = False
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        raise UsageError("a PEFT folder is put over a trunk by attach_peft, it has no settings to inject")

    def merge(self, backbone: Backbone) -> None:
        """By PEFT's own mathematics; parameters that change are replaced, for other models may share them.

        Raises WeightsError for a layer that PEFT merges wrongly, as PEFT 0.21 does OFT on a convolution.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import ModulesToSaveWrapper

        for name, module in list(backbone.vit.named_modules()):
            plain: Any = None
            if isinstance(module, ModulesToSaveWrapper):
                plain = module.unload_and_optionally_merge_module(
                    merge=True, safe_merge=False, adapter_names=None
                )
            elif isinstance(module, BaseTunerLayer):
                plain = _merged(name, module)
            if plain is not None:
                backbone.vit.set_submodule(name, plain)
        del backbone.vit.peft_config
        backbone.requires_grad_(False)


@torch.no_grad()
def _merged(name: str, layer: Any) -> nn.Module:
    """The plain layer that PEFT's ``layer`` becomes, which must compute the same."""
    base = layer.get_base_layer()
    for key, p in list(base.named_parameters(recurse=False)):
        base.register_parameter(key, nn.Parameter(p.detach().clone(), requires_grad=False))
    inputs = None
    if isinstance(base, nn.Linear | nn.Conv2d):
        sides = [3 * side for side in base.weight.shape[2:]]  # of a convolution: several positions
        inputs = torch.randn(5, base.weight.shape[1], *sides, generator=torch.Generator().manual_seed(0))
    wanted = None if inputs is None else layer(inputs)
    layer.merge()
    merged: nn.Module = layer.get_base_layer()
    if wanted is not None and not torch.allclose(merged(inputs), wanted, rtol=1e-3, atol=1e-3):
        raise WeightsError(
            f"PEFT does not merge its {type(layer).__name__} over {name} into a layer that computes the same: "
            f"use the adapter without merging it"
        )
    return merged


def _require_trunk(base: Backbone, folder: Path) -> None:
    file = folder / WEIGHTS[0]
    if file.is_file():
        with safe_open(file, framework="pt") as opened:
            wanted = (opened.metadata() or {}).get(TRUNK)
        if wanted and wanted != (found := parameters_sha256(base)):
            raise WeightsError(
                f"PEFT folder {folder} was trained over other weights (trunk hash {wanted[:12]}, here {found[:12]}): "
                f"its card names the base weights"
            )


@contextmanager
def _lent_copies(backbone: Backbone) -> Iterator[None]:
    """Inside, every parameter is a copy, which PEFT may write to; afterwards what it left alone is shared again."""
    shared: dict[int, nn.Parameter] = {}
    for module in backbone.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = copy = nn.Parameter(p.detach().clone(), requires_grad=False)
                shared[id(copy)] = p
    yield
    for module in backbone.modules():
        for name, p in module._parameters.items():
            before = None if p is None else shared.get(id(p))
            if p is not None and before is not None and p.dtype == before.dtype and torch.equal(p, before):
                module._parameters[name] = before


@contextmanager
def _one_line(folder: Path, backbone: Backbone) -> Iterator[None]:
    """PEFT's own errors, a paragraph or a traceback each, as one line that names the folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are an error here
            yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise WeightsError(
            f"PEFT folder {folder} does not fit {backbone.name}: {_first_line(error)}; give the model it was trained over"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A state dict's mismatches are told from the second line on.
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__
