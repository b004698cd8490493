"""Adapters: which tensors of the trunk are trained. One file each; ``ADAPTERS`` lists them all."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Field

from essa_dist.adapters.adaptformer import AdaptFormer, AdaptFormerConfig
from essa_dist.adapters.apla import APLA, APLAConfig
from essa_dist.adapters.bitfit import BitFit, BitFitConfig
from essa_dist.adapters.branches import Branches
from essa_dist.adapters.combined import Combined
from essa_dist.adapters.explora import ExPLoRA, ExPLoRAConfig
from essa_dist.adapters.frozen import Frozen, FrozenConfig
from essa_dist.adapters.full import Full, FullConfig
from essa_dist.adapters.interface import Adapter
from essa_dist.adapters.last_blocks import LastBlocks, LastBlocksConfig
from essa_dist.adapters.ln_tuning import LNTuning, LNTuningConfig
from essa_dist.adapters.lora import LoRA, LoRAConfig
from essa_dist.adapters.ssf import SSF, SSFConfig
from essa_dist.adapters.vpt import VPT, VPTConfig
from essa_dist.backbones.vit import Backbone
from essa_dist.nearest import nearest
from essa_dist.settings import Config

ADAPTERS: dict[str, tuple[type[Config], type[Any]]] = {
    "adaptformer": (AdaptFormerConfig, AdaptFormer),
    "apla": (APLAConfig, APLA),
    "bitfit": (BitFitConfig, BitFit),
    "explora": (ExPLoRAConfig, ExPLoRA),
    "frozen": (FrozenConfig, Frozen),
    "full": (FullConfig, Full),
    "last_blocks": (LastBlocksConfig, LastBlocks),
    "ln_tuning": (LNTuningConfig, LNTuning),
    "lora": (LoRAConfig, LoRA),
    "ssf": (SSFConfig, SSF),
    "vpt": (VPTConfig, VPT),
}
"""Name, as in ``adapter.kind``, to its settings and the class that injects and merges it."""


def _written_short(value: Any) -> Any:
    """``apla`` for ``{kind: apla}``; ``{kind: apla+bitfit, rank: 8}`` for two parts, each with the keys that it has."""
    value = {"kind": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or "+" not in str(value.get("kind")):
        return value
    parts: list[dict[str, Any]] = [{"kind": kind.strip()} for kind in value["kind"].split("+")]
    for part in parts:
        if part["kind"] not in ADAPTERS:
            near = nearest(part["kind"], ADAPTERS)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{part['kind']!r} is no adapter; allowed: {' | '.join(ADAPTERS)}{hint}")
    for key, setting in value.items():
        if key == "kind":
            continue
        owners = [part for part in parts if key in ADAPTERS[part["kind"]][0].model_fields]
        if len(owners) > 1:
            raise ValueError(
                f"{key} belongs to several of {value['kind']}: write them out under adapter.parts"
            )
        (owners or parts)[0][key] = setting
    return {"kind": "combined", "parts": parts}


if TYPE_CHECKING:
    SingleConfig: TypeAlias = Config
    AdapterConfig: TypeAlias = Config
else:
    SingleConfig = Annotated[
        Union[tuple(config for config, _ in ADAPTERS.values())],  # noqa: UP007  (made from the dict)
        Field(discriminator="kind"),
        BeforeValidator(_written_short),
    ]


class CombinedConfig(Config):
    kind: Literal["combined"] = "combined"
    """Several adapters at once; ``adapter=apla+bitfit`` is short for it."""
    parts: tuple[SingleConfig, ...] = Field(min_length=2)
    """The adapters, each with its settings; no two may train or change the same tensor."""


if not TYPE_CHECKING:
    AdapterConfig = Annotated[
        Union[(CombinedConfig, *(config for config, _ in ADAPTERS.values()))],
        Field(discriminator="kind"),
        BeforeValidator(_written_short),
    ]
    """One adapter's Config, chosen by ``kind``; ``adapter=apla`` alone means its defaults."""


def build_adapter(config: AdapterConfig) -> Adapter:
    """The adapter of ``config.kind``."""
    if isinstance(config, CombinedConfig):
        return Combined([(build_adapter(part), label(part)) for part in config.parts])
    adapter: Adapter = ADAPTERS[label(config)][1](config)
    return adapter


def inject_adapter(
    backbone: Backbone, config: AdapterConfig, *, seed: int, final_norm: bool = True
) -> Adapter:
    """Freeze ``backbone`` and put the adapter of ``config`` into it; exactly its tensors then require gradients.

    Without ``final_norm`` those of the trunk's final norm don't, for a head that leaves it out.
    """
    adapter = build_adapter(config)
    backbone.requires_grad_(False)
    adapter.inject(backbone, seed=seed)
    if not final_norm:
        backbone.vit.norm.requires_grad_(False)
    backbone.train(backbone.training)  # new modules come in training mode, with dropout
    return adapter


def label(config: AdapterConfig | Mapping[str, Any]) -> str:
    """What an adapter's settings are called: ``lora``, ``apla+bitfit``."""
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else config.model_dump()
    if settings.get("kind") == "combined":
        return "+".join(part["kind"] for part in settings["parts"])
    return str(settings.get("kind"))


__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "Branches",
    "build_adapter",
    "inject_adapter",
    "label",
]
