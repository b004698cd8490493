"""Factors of a LoRA that PEFT does not know; its layers take them for their own, for each has a dense ``weight``.

Shapes: C in_features, D out_features, R rank, P parts of a layer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CastLinear(nn.Linear):
    """Takes inputs of any precision: DoRA asks for B A in that of the masters, inside a branch that computes in another."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")  # draws nothing
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Down(nn.Module):
    """A. With ``keep`` also the initial A0, in the second half of the outputs: [.., C] to [.., R] or [.., 2R]."""

    initial: Tensor | None  # [R, C]. A buffer: a singular value decomposition differs between machines.

    def __init__(self, weight_RC: Tensor, *, keep: bool) -> None:
        super().__init__()
        self.trained = CastLinear(weight_RC)
        self.register_buffer("initial", weight_RC.clone() if keep else None)

    @property
    def weight(self) -> Tensor:
        """[R, C] or [2R, C], as PEFT merges it."""
        if self.initial is None:
            return self.trained.weight
        return torch.cat([self.trained.weight, self.initial.to(self.trained.weight.dtype)])

    def forward(self, x: Tensor) -> Tensor:
        trained: Tensor = self.trained(x)
        if self.initial is None:
            return trained
        return torch.cat([trained, F.linear(x.to(trained.dtype), self.initial.to(trained.dtype))], dim=-1)


class Up(nn.Module):
    """B, made of one block for each part; the other output features get zero. With ``keep`` it is [B, -B0].

    So PiSSA's change is B A - B0 A0, two equal products before training, and their difference is exactly zero.
    """

    def __init__(
        self, ups: Sequence[Tensor], rows: Sequence[range], out_features: int, *, keep: bool
    ) -> None:
        super().__init__()
        self.rows, self.out_features, self.keep = tuple(rows), out_features, keep
        self.parts = nn.ModuleList(plain_linear(up) for up in ups)  # each [.., R] to [.., len(rows)]
        for index, up in enumerate(ups):
            self.register_buffer(f"initial_{index}", up.clone() if keep else None)

    @property
    def weight(self) -> Tensor:
        """[D, P R] or [D, 2 P R], as PEFT merges it."""
        blocks = [
            self._place(self.rows[i], part.get_parameter("weight")) for i, part in enumerate(self.parts)
        ]
        if self.keep:
            blocks += [self._place(rows, -self._initial(i, blocks[0])) for i, rows in enumerate(self.rows)]
        return torch.cat(blocks, dim=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._spread(self.changes(hidden))

    def changes(self, hidden: Tensor) -> list[Tensor]:
        """What each part adds to its rows, [.., len(rows)] of [.., P R]. To be called inside the layer they belong to."""
        n = len(self.parts)
        pieces = hidden.chunk(2 * n if self.keep else n, dim=-1)
        outputs: list[Tensor] = [part(piece) for part, piece in zip(self.parts, pieces[:n], strict=True)]
        if self.keep:
            outputs = [
                out - F.linear(pieces[n + i], self._initial(i, out).to(out.dtype))
                for i, out in enumerate(outputs)
            ]
        return outputs

    def _initial(self, index: int, like: Tensor) -> Tensor:
        return self.get_buffer(f"initial_{index}").to(like.dtype)

    def _place(self, rows: range, block: Tensor) -> Tensor:
        return F.pad(block, (0, 0, rows.start, self.out_features - rows.stop))

    def _spread(self, outputs: Sequence[Tensor]) -> Tensor:
        """Put each part's outputs [.., len(rows)] in its place among zeros: [.., D]."""
        spread, reached = [], 0
        for rows, output in zip(self.rows, outputs, strict=True):
            spread += [output.new_zeros(*output.shape[:-1], rows.start - reached), output]
            reached = rows.stop
        spread.append(outputs[0].new_zeros(*outputs[0].shape[:-1], self.out_features - reached))
        return torch.cat(spread, dim=-1)


def plain_linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")  # draws nothing
    linear.weight = nn.Parameter(weight)
    return linear
