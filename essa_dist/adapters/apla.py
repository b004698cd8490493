"""APLA: train some rows of a frozen linear layer, by default of the attention output projection.

Source: Sorkhei et al., "APLA", arXiv:2503.11335; in SSA: arXiv:2503.18873. The paper tunes columns of W in
y = x W; torch stores W transposed, so one tuned column there is one row, i.e. one output feature, here.
Shapes: C in_features, D out_features, R tuned rows (1 <= R <= D).
"""

from collections import defaultdict
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from essa_dist.adapters.targets import Target, find_targets, layer_seed
from essa_dist.backbones.quantised import QuantisedLinear
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class APLAConfig(Config):
    kind: Literal["apla"] = "apla"
    """Train rows of the attention output projection."""
    rank: Literal["full"] | Annotated[int, Field(ge=1)] = "full"
    """Tuned rows per layer, drawn once by the run's seed; full: all of them, as ESSA's released setting."""
    targets: tuple[str, ...] = ("proj",)
    """Layers of each block that are tuned: q, k, v, qkv, proj, fc1, fc2, or timm's own names."""


class APLALinear(nn.Module):
    """``base``, frozen, with the output features in ``rows`` computed from trainable weights."""

    rows: Tensor  # [R] int64. A buffer, and the only record of the choice: saved and moved with the weights.

    def __init__(self, base: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.to(base.weight.device))
        self.base = base.requires_grad_(False)
        # Copies of the rows, not a delta to them: weight decay then acts as in full fine-tuning.
        self.weight = nn.Parameter(base.weight.detach()[self.rows])
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach()[self.rows])

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, QuantisedLinear):  # composed, its product would not be the packed weight's
            tuned = F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
            output: Tensor = self.base(x).index_copy(-1, self.rows, tuned)
            return output
        # One product with the composed weight, not two: so the result is that of the plain layer, bit for bit.
        base_bias = self.base.bias
        weight_DC = self.base.weight.index_copy(0, self.rows, self.weight.to(self.base.weight.dtype))
        bias_D = (
            base_bias
            if self.bias is None
            else base_bias.index_copy(0, self.rows, self.bias.to(base_bias.dtype))
        )
        return F.linear(x, weight_DC, bias_D)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """``base`` with the tuned rows in new parameters, for other models may share the old ones."""
        for name, rows in (("weight", self.weight), ("bias", self.bias)):
            if rows is not None:
                old = self.base.get_parameter(name)
                merged = old.detach().index_copy(0, self.rows, rows.to(old.dtype))
                setattr(self.base, name, nn.Parameter(merged, requires_grad=False))
        return self.base


class APLA:
    """Full rank of a whole layer needs no new module: the layer itself is trained."""

    merges: ClassVar[bool] = True
    starts_exact: ClassVar[bool] = True
    yields: ClassVar[bool] = False
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: APLAConfig) -> None:
        self.config = config

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        by_layer: dict[str, list[Target]] = defaultdict(list)
        for target in find_targets(backbone, self.config.targets):
            by_layer[target.name].append(target)
        for name, parts in by_layer.items():
            if self.config.rank == "full" and parts[0].whole:
                parts[0].linear.requires_grad_(True)
            else:
                # Own generator: every process must pick the same rows, whatever its global RNG did before.
                generator = torch.Generator().manual_seed(layer_seed(seed, name))
                rows = torch.cat([draw_rows(part.rows, self.config.rank, generator) for part in parts])
                parts[0].replace(APLALinear(parts[0].linear, rows.sort().values))

    def merge(self, backbone: Backbone) -> None:
        for name, module in list(backbone.named_modules()):
            if isinstance(module, APLALinear):
                backbone.set_submodule(name, module.merge())


def draw_rows(choices: range, rank: int | Literal["full"], generator: torch.Generator) -> Tensor:
    """``rank`` of the output features ``choices``, sorted, [R] int64. Raises UsageError if there are fewer."""
    size = len(choices)
    if rank == "full":
        return torch.arange(choices.start, choices.stop)
    if rank > size:
        raise UsageError(
            f"adapter.rank must be in 1..{size} (output features of a target) or full, got {rank}"
        )
    return torch.randperm(size, generator=generator)[:rank].sort().values + choices.start
