"""Adapters: which tensors of the trunk are trained. One file each; ``ADAPTERS`` lists them all."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Field

from essa_dist.adapters.adaptformer import AdaptFormer, AdaptFormerConfig
from essa_dist.adapters.apla import APLA, APLAConfig
from essa_dist.adapters.bitfit import BitFit, BitFitConfig
from essa_dist.adapters.branches import Branches
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
from essa_dist.errors import UsageError
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


class Combined:
    """Several adapters over one trunk, each with tensors of its own."""

    merges: ClassVar[bool]
    starts_exact: ClassVar[bool]
    yields: ClassVar[bool] = False

    def __init__(self, config: CombinedConfig) -> None:
        self.kinds = [label(part) for part in config.parts]
        pairs = sorted(
            ((build_adapter(part), label(part)) for part in config.parts), key=lambda pair: pair[0].yields
        )
        self.parts = pairs
        self.merges = all(part.merges for part, _ in pairs)  # type: ignore[misc]  # of this combination, not of all
        self.starts_exact = all(part.starts_exact for part, _ in pairs)  # type: ignore[misc]

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        trained: dict[int, tuple[str, str]] = {}  # id of the tensor -> the adapter that trains it, its name
        for part, kind in self.parts:
            if not part.yields:
                backbone.requires_grad_(False)  # so that a part shows what it would train, were it alone
            part.inject(backbone, seed=seed)
            names = {id(p): name for name, p in backbone.named_parameters()}
            found = [p for p in backbone.parameters() if p.requires_grad]
            own = [p for p in found if not (part.yields and id(p) in trained)]
            if not own:
                raise UsageError(f"adapter: {kind} adds nothing in {'+'.join(self.kinds)}; leave it out")
            # Trained by both, or moved into a new module, where the first one's tensor would not be what it was.
            clashes = [trained[id(p)] for p in own if id(p) in trained]
            clashes += [(of, name) for key, (of, name) in trained.items() if names.get(key) != name]
            if clashes:
                tensors = ", ".join(name for _, name in clashes[:4]) + (", ..." if len(clashes) > 4 else "")
                raise UsageError(
                    f"adapter: {clashes[0][0]} and {kind} both train or change {tensors}; "
                    "choose adapters or targets that differ"
                )
            trained |= {id(p): (kind, names[id(p)]) for p in own}
            for parameter in backbone.parameters():
                parameter.requires_grad_(id(parameter) in trained)

    def merge(self, backbone: Backbone) -> None:
        for part, _ in reversed(self.parts):
            part.merge(backbone)


ALL: dict[str, tuple[type[Config], type[Any]]] = {**ADAPTERS, "combined": (CombinedConfig, Combined)}

if not TYPE_CHECKING:
    AdapterConfig = Annotated[
        Union[tuple(config for config, _ in ALL.values())],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(_written_short),
    ]
    """One adapter's Config, chosen by ``kind``; ``adapter=apla`` alone means its defaults."""


def build_adapter(config: AdapterConfig) -> Adapter:
    """The adapter of ``config.kind``."""
    adapter: Adapter = ALL[config.model_dump()["kind"]][1](config)
    return adapter


def inject_adapter(backbone: Backbone, config: AdapterConfig, *, seed: int) -> Adapter:
    """Freeze ``backbone`` and put the adapter of ``config`` into it; exactly its tensors then require gradients."""
    adapter = build_adapter(config)
    backbone.requires_grad_(False)
    adapter.inject(backbone, seed=seed)
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
