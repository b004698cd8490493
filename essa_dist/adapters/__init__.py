"""Adapters: which tensors of the trunk are trained. One file each; ``ADAPTERS`` lists them all."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from essa_dist.adapters.apla import APLA, APLAConfig
from essa_dist.adapters.branches import Branches
from essa_dist.adapters.full import Full, FullConfig
from essa_dist.adapters.interface import Adapter

ADAPTERS: dict[str, type[Any]] = {
    "apla": APLA,
    "full": Full,
}
"""Name, as in ``adapter.kind``, to the class that injects and merges it."""


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AdapterConfig = Annotated[APLAConfig | FullConfig, Field(discriminator="kind"), BeforeValidator(_kind_alone)]
"""One adapter's Config, chosen by ``kind``; ``adapter=apla`` alone means its defaults."""


def build_adapter(config: APLAConfig | FullConfig) -> Adapter:
    """The adapter of ``config.kind``."""
    adapter: Adapter = ADAPTERS[config.kind](config)
    return adapter


__all__ = ["ADAPTERS", "Adapter", "AdapterConfig", "Branches", "build_adapter"]
