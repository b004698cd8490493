"""Adapters put over a trunk that is in memory once, however many there are.

An adapted model shares every frozen parameter with its base. What an adapter trains of the base itself (APLA's
projections, BitFit's biases) it gets as copies of its own, so the base and its other adapters stay as they are.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from essa_dist.adapters import Adapter, AdapterConfig, inject_adapter
from essa_dist.adapters.peft_folder import attach_peft, is_peft_folder
from essa_dist.adapters.stacked import stacked
from essa_dist.backbones import Backbone
from essa_dist.backbones.weights import misfits, other_trunk, parameters_sha256
from essa_dist.errors import UsageError, WeightsError
from essa_dist.export.saved import find_checkpoint, find_run, model_settings, read_state, read_tensors


def attach(base: Backbone, ref: str, *, trunk_sha256: str | None = None) -> tuple[Backbone, Adapter]:
    """A model over the parameters of ``base`` with an adapter: eval mode, nothing trainable, not merged.

    ``ref``: a run folder or a checkpoint in it (the teacher; with the prefix ``student:`` the student) or a folder of
    PEFT. ``trunk_sha256``: the hash of ``base`` where the caller has it. Raises UsageError for a reference that is none
    and for a damaged run, WeightsError for an adapter that was trained over another trunk.
    """
    path = Path(ref.removeprefix("student:")).expanduser()
    if is_peft_folder(path):
        return attach_peft(base, path)
    checkpoint, config = find_checkpoint(path), model_settings(find_run(path))
    state = read_state(checkpoint)
    if wrong := other_trunk(state, trunk_sha256 or parameters_sha256(base)):
        raise WeightsError(f"checkpoint {checkpoint} was {wrong}")
    branch = "student" if ref.startswith("student:") else config.branch
    tensors = read_tensors(checkpoint, state, branch, "buffers")
    prefix = "backbone."
    return put_on(
        base,
        config.adapter.model_dump(mode="json"),
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
        seed=config.seed,
        where=f"checkpoint {checkpoint}",
        final_norm=config.head.trunk_norm,
    )


def put_on(
    base: Backbone,
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    seed: int,
    where: str,
    final_norm: bool = True,
) -> tuple[Backbone, Adapter]:
    """``base`` with an adapter of these settings, holding ``tensors``: its trained ones and every buffer, by name.

    ``final_norm``: as in ``inject_adapter``. Raises UsageError naming ``where`` and the first tensors that don't fit.
    """
    backbone = base.over_the_same_parameters()
    shared = {id(p) for p in base.parameters()}
    config = TypeAdapter(AdapterConfig).validate_python(settings)
    adapter = inject_adapter(backbone, config, seed=seed, final_norm=final_norm)
    if "mask_token" not in tensors:  # the run masked nothing, so `full` did not train it
        backbone.mask_token.requires_grad_(False)
    for module in backbone.modules():
        for name, p in module._parameters.items():
            if p is not None and p.requires_grad and id(p) in shared:
                module._parameters[name] = nn.Parameter(p.detach().clone())
    own: dict[str, Tensor] = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    own |= dict(backbone.named_buffers())
    if wrong := misfits(own, tensors, here="this model"):
        raise UsageError(f"{where} does not fit its adapter's settings: {wrong}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    backbone.adapter_settings, backbone.adapter_seed = stacked(base.adapter_settings, settings), seed
    backbone.requires_grad_(False)
    base.requires_grad_(False)
    return backbone.eval(), adapter
