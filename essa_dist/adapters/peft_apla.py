"""A LoRA folder of PEFT read as APLA, where it is one: B selects rows at scale 1, A is their change.

So ``format=peft`` writes APLA, and so plain PEFT can train it on. Shapes: C in_features, D out_features, R rows.
"""

from pathlib import Path
from typing import Any

import torch

from essa_dist.adapters.apla import APLA, APLAConfig, APLALinear
from essa_dist.adapters.interface import Adapter
from essa_dist.adapters.lora import NAME
from essa_dist.adapters.peft_folder import attach_peft
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError


def attach_as_apla(base: Backbone, folder: Path) -> tuple[Backbone, Adapter]:
    """A model over the parameters of ``base`` in which APLA trains the rows that a LoRA selects, from their values on.

    Exactly those rows and their biases require gradients. Raises UsageError for a folder of another form.
    """
    from peft.tuners.lora import Linear

    found, _ = attach_peft(base, folder)
    shared = {id(p) for p in base.parameters()}
    backbone = base.over_the_same_parameters()
    backbone.requires_grad_(False)
    reason = "" if any(isinstance(m, Linear) for m in found.modules()) else "it is no LoRA"
    read: set[str] = set()
    for name, layer in found.vit.named_modules():
        if isinstance(layer, Linear):
            reason = reason or _train_rows(backbone, name, layer)
            read |= {f"{name}.{key}" for key, _ in layer.named_parameters()}
    others = [n for n, p in found.vit.named_parameters() if id(p) not in shared and n not in read]
    if reason := reason or (f"{others[0]} was changed too" if others else ""):
        raise UsageError(f"PEFT folder {folder} can't be read as APLA: {reason}; merge it instead")
    return backbone, APLA(APLAConfig())


def _train_rows(backbone: Backbone, name: str, layer: Any) -> str:
    """Make APLA train what ``layer``, PEFT's, selects of the linear layer ``name``; why not, where that is impossible."""
    up_DR, down_RC = layer.lora_B[NAME].weight, layer.lora_A[NAME].weight
    rows_R = up_DR.argmax(dim=0)
    more = layer.scaling[NAME] != 1 or layer.lora_variant or layer.lora_bias[NAME]
    if more or not torch.equal(up_DR, torch.eye(len(up_DR))[:, rows_R]):
        return f"B of {name} does not select rows at scale 1"
    if len(rows_R.unique()) < len(rows_R):
        return f"B of {name} selects a row twice"
    plain, now = backbone.vit.get_submodule(name), layer.get_base_layer()
    tuned = APLALinear(plain, rows_R.sort().values)
    tuned.weight.data += down_RC[rows_R.argsort()]
    if tuned.bias is not None:
        tuned.bias.data = now.bias.detach()[tuned.rows].clone()
        if not torch.equal(now.bias, plain.bias.index_copy(0, tuned.rows, tuned.bias)):
            return f"the bias of {name} changed in rows that B does not select"
    backbone.vit.set_submodule(name, tuned)
    return ""
