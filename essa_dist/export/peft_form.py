"""What an adapter changed, as the contents of a stock LoRA folder of Hugging Face PEFT. Nothing is approximated.

- LoRA stays as it was trained: of q and v in a fused layer B has blocks, PiSSA is [B, -B0] [A; A0], DoRA keeps its lengths;
- rows that were trained (APLA): B selects the rows, A is their change, alpha equals the rank;
- a layer that was trained whole: the same with every row, or with an A that is the identity where that is smaller;
- biases go into PEFT's ``bias``, norms and scales into its ``modules_to_save``.

Shapes: C in_features, D out_features, R rank.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from essa_dist.adapters.lora import NAME
from essa_dist.errors import UsageError

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model."""


class Change(NamedTuple):
    """One linear layer is now W + scaling B A; with ``lengths``, each row of that has been brought to its length."""

    down: Tensor
    """A, [R, C]"""
    up: Tensor
    """B, [D, R]"""
    scaling: float
    lengths: Tensor | None = None
    """[D]"""

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def alpha(self) -> float:
        alpha = self.scaling * self.rank
        return round(alpha) if math.isclose(alpha, round(alpha)) else alpha


@dataclass
class Changes:
    """All that differs between two plain ViTs, by timm's names."""

    layers: dict[str, Change] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Changed modules that are neither linear nor hold other modules, as they are now."""
    biases: set[str] = field(default_factory=set)
    elsewhere: list[str] = field(default_factory=list)
    """Changed tensors that a LoRA folder has no place for."""


def find_changes(base: nn.Module, adapted: nn.Module, merged: nn.Module) -> Changes:
    """What leads from ``base`` to ``merged``, the ViT that ``adapted`` becomes when its adapter is merged.

    Raises UsageError where plain timm would not see a change, for it passes the changed layer by.
    """
    found = Changes()
    after = dict(merged.named_parameters())
    for name, module in base.named_modules():
        own = dict(module.named_parameters(recurse=False))
        full = {key: f"{name}.{key}".lstrip(".") for key in own}
        changed = [key for key, p in own.items() if not torch.equal(p, after[full[key]])]
        if isinstance(module, nn.Linear) and "weight" in changed:
            _refuse_unseen(base, name)
            found.layers[name] = _change(adapted.get_submodule(name), module.weight, after[full["weight"]])
            changed.remove("weight")
        if changed == ["bias"]:
            found.biases.add(full["bias"])
        elif changed and name and not list(module.children()):
            found.modules[name] = merged.get_submodule(name)
        else:
            found.elsewhere += [full[key] for key in changed]
    return found


def folder_of(changes: Changes, base: nn.Module, merged: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's ``LoraConfig`` and the tensors beside it, under PEFT's names."""
    from peft import LoraConfig

    after = merged.state_dict()
    layers = changes.layers or _no_change(base)
    dora = any(change.lengths is not None for change in layers.values())
    tensors: dict[str, Tensor] = {}
    for name, change in layers.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = change.down, change.up
        if dora:  # PEFT has it for all layers or none; the others keep the lengths they have now
            now_D = after[f"{name}.weight"].norm(dim=1)
            tensors[f"{name}.lora_magnitude_vector"] = now_D if change.lengths is None else change.lengths
    for name in _matching(changes.modules, base):
        tensors |= {f"{name}.{key}": t for key, t in merged.get_submodule(name).state_dict().items()}
    bias = _bias_setting(changes.biases, layers)
    for name, tensor in after.items():
        layer, _, key = name.rpartition(".")
        if (
            key == "bias"
            and name not in tensors
            and (bias == "all" or (bias == "lora_only" and layer in layers))
        ):
            tensors[f"{layer}.base_layer.bias" if layer in layers else name] = tensor
    rank, alpha = Counter((c.rank, c.alpha) for c in layers.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number will do
        rank_pattern={name: c.rank for name, c in layers.items() if c.rank != rank},
        alpha_pattern={name: c.alpha for name, c in layers.items() if c.alpha != alpha},
        target_modules=list(layers),
        modules_to_save=list(changes.modules) or None,
        bias=bias,
        use_dora=dora,
        inference_mode=True,
    )
    return config, {PREFIX + name: t.detach().clone().contiguous() for name, t in tensors.items()}


def _refuse_unseen(base: nn.Module, name: str) -> None:
    attention, _, attribute = name.rpartition(".")
    if attribute == "qkv" and getattr(base.get_submodule(attention), "q_bias", None) is not None:
        raise UsageError(
            f"format=peft: plain timm uses the weight of {name} without calling the layer, so it would pass PEFT's "
            f"change by (unless the user sets qkv_bias_separate on each attention): use format=timm"
        )


def _change(layer: nn.Module, before_DC: Tensor, after_DC: Tensor) -> Change:
    from peft.tuners.lora import Linear

    if isinstance(layer, Linear):
        lora: Any = layer  # its factors are modules of any kind to the type checker
        lengths = lora.lora_magnitude_vector[NAME].weight if NAME in lora.lora_magnitude_vector else None
        return Change(lora.lora_A[NAME].weight, lora.lora_B[NAME].weight, lora.scaling[NAME], lengths)
    trained = getattr(layer, "rows", None)  # APLA's, whether each changed or not
    rows = (after_DC != before_DC).any(dim=1).nonzero().flatten() if trained is None else trained
    if len(rows) > before_DC.shape[1]:
        return Change(torch.eye(before_DC.shape[1]), after_DC - before_DC, 1.0)
    return _rows(before_DC, after_DC, rows)


def _rows(before_DC: Tensor, after_DC: Tensor, rows_R: Tensor) -> Change:
    select_DR = torch.eye(len(before_DC))[:, rows_R]
    return Change((after_DC - before_DC)[rows_R], select_DR, 1.0)


def _no_change(base: nn.Module) -> dict[str, Change]:
    name, linear = next((name, m) for name, m in base.named_modules() if isinstance(m, nn.Linear))
    return {name: _rows(linear.weight, linear.weight, torch.tensor([0]))}


def _matching(names: Iterable[str], base: nn.Module) -> list[str]:
    """What PEFT takes ``modules_to_save`` for: every module whose name ends so."""
    return [name for name, _ in base.named_modules() if any(name.endswith(end) for end in names)]


def _bias_setting(biases: set[str], layers: Iterable[str]) -> Literal["none", "lora_only", "all"]:
    if not biases:
        return "none"
    return "lora_only" if {name.removesuffix(".bias") for name in biases} <= set(layers) else "all"
