"""How a run is spread over processes; which one is what the launcher asked Accelerate for."""

from accelerate import Accelerator

from essa_dist.distributed.environment import strategy_name
from essa_dist.distributed.strategies.clipping import Clipping
from essa_dist.distributed.strategies.interface import Part, Strategy

__all__ = ["Clipping", "Part", "Strategy", "choose"]


def choose(accelerator: Accelerator, *, shard_frozen: bool = False) -> Strategy:
    """The strategy that ``accelerator`` stands for; ``shard_frozen``: FSDP2 spreads frozen tensors over ranks as well."""
    name = strategy_name(accelerator)
    if name.startswith("zero"):
        from essa_dist.distributed.strategies.zero import ZeRO

        return ZeRO(accelerator, name)
    if name == "fsdp2":
        from essa_dist.distributed.strategies.fsdp2 import FSDP2

        return FSDP2(accelerator, name, shard_frozen=shard_frozen)
    from essa_dist.distributed.strategies.replicated import Replicated

    return Replicated(accelerator, name)
