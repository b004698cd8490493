"""Where DeepSpeed keeps what: the flat fp32 partitions of ZeRO and which piece of which tensor they hold."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from essa_dist.distributed.collectives import rank


@dataclass(frozen=True)
class Piece:
    """A run of numbers of one tensor inside this rank's flat partition of its group."""

    flat: Tensor
    """The partition: the fp32 masters, and the key of their moments in the optimizer's state."""
    offset: int
    """Where the piece begins in the partition ..."""
    start: int
    """... and in the whole tensor, flattened."""
    numel: int

    def of(self, partition: Tensor) -> Tensor:
        """The piece of ``flat`` or of a moment of its shape; a view."""
        return partition.detach().narrow(0, self.offset, self.numel)

    def take(self, partition: Tensor, whole: Tensor) -> None:
        """Copy the piece from the whole tensor."""
        self.of(partition).copy_(whole.flatten()[self.start : self.start + self.numel])


def pieces(zero: Any, stage: int, students: dict[str, Any]) -> dict[str, Piece]:
    """The pieces of student tensors that this rank holds, by name; a tensor of which it holds nothing is absent."""
    found: dict[str, Piece] = {}
    for name, parameter in students.items():
        piece = _of_stage_3(zero, parameter) if stage == 3 else _of_stage_1_or_2(zero, parameter)
        if piece is not None and piece.numel:
            found[name] = piece
    return found


def _of_stage_1_or_2(zero: Any, parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    inside, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    return Piece(flat, inside.start, whole.start, inside.numel)


def _of_stage_3(zero: Any, parameter: Any) -> Piece:
    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
    start, values = shard_of(parameter)
    return Piece(zero.fp32_partitioned_groups_flat[group], offset, start, values.numel())


def shard_of(parameter: Any) -> tuple[int, Tensor]:
    """Of a tensor partitioned by stage 3: where this rank's shard begins, and the shard, without its padding."""
    size = parameter.ds_tensor.ds_numel
    start = min(rank() * size, parameter.ds_numel)
    return start, parameter.ds_tensor.data.view(-1)[: min(size, parameter.ds_numel - start)]


def gradient(parameter: Any, stage: int) -> Tensor:
    """This rank's piece of the averaged gradient, between backward and step; a view that the step will use."""
    if stage == 3:
        from deepspeed.utils import safe_get_local_grad

        piece: Tensor = safe_get_local_grad(parameter)
    else:
        piece = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
    return piece
