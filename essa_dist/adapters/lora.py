"""LoRA: a trained product of two thin matrices beside a frozen linear layer, through Hugging Face PEFT.

Sources: LoRA arXiv:2106.09685, rsLoRA arXiv:2312.03732, DoRA arXiv:2402.09353, PiSSA arXiv:2404.02948. The defaults
are those of MED-PEFT (arXiv:2401.12215: q and v, alpha 32, dropout 0.1); ESSA's own LoRA settings were not published.
Layers are ``peft.tuners.lora.Linear`` with PEFT's own forward and merge. Two things PEFT does not know are put into
their ``factors``: some rows of a fused layer, and a PiSSA that leaves the frozen weight alone.
In bf16 and fp16 DoRA's lengths are compared in that precision: a few rows may start one rounding step off.
Shapes: C in_features, R rank.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from essa_dist.adapters.factors import CastLinear, Down, Up, plain_linear
from essa_dist.adapters.targets import Target, find_targets, layer_seed
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config

NAME = "default"
"""PEFT's name for the only adapter in a layer."""


class LoRAConfig(Config):
    kind: Literal["lora"] = "lora"
    """Train low-rank changes of linear layers, by PEFT."""
    rank: int = Field(8, ge=1)
    """Rank of the change of each target; q and v of a fused layer have this rank each."""
    alpha: float = Field(32, gt=0)
    """The change is scaled by alpha / rank, or with rslora by alpha / sqrt(rank)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the student on the way into the change; the teacher never drops."""
    targets: tuple[str, ...] = ("q", "v")
    """Layers of each block that are changed: q, k, v, qkv, proj, fc1, fc2, or timm's own names."""
    dora: bool = False
    """Train the length of each row apart from its direction; needs whole layers, as qkv and proj."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    init: Literal["default", "pissa"] = "default"
    """pissa: begin with the largest singular values of each target; the model still starts as the base model."""


class LoRA:
    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False

    def __init__(self, config: LoRAConfig) -> None:
        self.config = config
        self.silent = () if config.init == "pissa" else ("*.lora_A.*",)  # B is zero

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        self.inject_into(find_targets(backbone, self.config.targets), seed=seed)

    def inject_into(self, targets: Sequence[Target], *, seed: int) -> None:
        """Put the trained factors beside each target, in place. Raises UsageError for settings that don't fit one."""
        by_layer: dict[str, dict[range, Target]] = defaultdict(dict)
        for target in targets:
            self._check(target)
            by_layer[target.name][target.rows] = target
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global state: lend it one of our own
            for name, parts in by_layer.items():
                torch.manual_seed(layer_seed(seed, name))
                whole = next((part for part in parts.values() if part.whole), None)
                first = whole or next(iter(parts.values()))
                first.replace(self._layer(first.linear, [first.rows] if whole else sorted(parts, key=min)))

    def merge(self, backbone: Backbone) -> None:
        merge_lora(backbone)

    def _check(self, target: Target) -> None:
        limit = min(len(target.rows), target.linear.in_features)
        if self.config.rank > limit:
            raise UsageError(f"adapter.rank must be in 1..{limit} for {target.name}, got {self.config.rank}")
        if self.config.dora and not target.whole:
            raise UsageError(
                f"adapter.dora needs whole layers, and q, k, v are parts of {target.name}: use adapter.targets=[qkv]"
            )

    def _layer(self, linear: nn.Linear, parts: list[range]) -> Any:
        """PEFT's layer around ``linear``, whose trained factors change the output features in ``parts``."""
        layer = self._stock(linear, init=True)
        fused, pissa = len(parts[0]) < linear.out_features, self.config.init == "pissa"
        if fused or pissa:
            factors = [self._factors(linear, part) for part in parts]
            down_RC = torch.cat([down for down, _ in factors])
            ups = [up for _, up in factors]
            layer.lora_A[NAME] = Down(down_RC, keep=pissa)
            layer.lora_B[NAME] = Up(ups, parts, linear.out_features, keep=pissa)
            # What PEFT says of itself; its scaling stays that of one part.
            layer.r[NAME] = rank = layer.lora_A[NAME].weight.shape[0]
            layer.lora_alpha[NAME] = layer.scaling[NAME] * (math.sqrt(rank) if self.config.rslora else rank)
        elif self.config.dora:
            layer.lora_A[NAME] = CastLinear(layer.lora_A[NAME].weight.detach())
        layer.cast_input_dtype_enabled = False  # masters are fp32, and compute in the input's precision
        return layer

    def _factors(self, linear: nn.Linear, rows: range) -> tuple[Tensor, Tensor]:
        """A [R, C] and B [len(rows), R] as PEFT initialises them for these rows alone."""
        weight = linear.weight.detach()[rows.start : rows.stop].clone()  # for PiSSA changes it
        layer = self._stock(plain_linear(weight), init="pissa" if self.config.init == "pissa" else True)
        return layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach()

    def _stock(self, linear: nn.Linear, *, init: Literal["pissa", True]) -> Any:
        """``linear`` as PEFT wraps it."""
        from peft import LoraConfig, inject_adapter_in_model

        holder = nn.ModuleDict({"layer": linear})
        config = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.config.dropout,
            use_dora=self.config.dora,
            use_rslora=self.config.rslora,
            init_lora_weights=init,
            target_modules=["layer"],
        )
        inject_adapter_in_model(config, holder, adapter_name=NAME)
        return holder["layer"]


def quicken_lora(vit: nn.Module) -> None:
    """The LoRA layers inside in their fast form; see ``lean_lora``."""
    if any(hasattr(module, "lora_A") for module in vit.modules()):
        from essa_dist.adapters.lean_lora import lean_lora

        lean_lora(vit)


def merge_lora(backbone: Backbone) -> None:
    """Fold every LoRA layer into its base layer by PEFT's own mathematics, and put that back in place.

    The changed weight is a new tensor: other models may share the old one.
    """
    from peft.tuners.lora import Linear

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, Linear):
            base = layer.get_base_layer()
            assert isinstance(base, nn.Linear)
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            layer.merge()
            backbone.set_submodule(name, base)
