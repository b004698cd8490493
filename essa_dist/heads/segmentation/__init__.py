"""Decoders: patch features to logits of every pixel. One file each; ``DECODERS`` lists them all."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

import torch
from pydantic import BeforeValidator, Field

from essa_dist.backbones.vit import Backbone
from essa_dist.heads.segmentation.dpt import DPT, DPTConfig
from essa_dist.heads.segmentation.interface import Decoded, Decoder, decode
from essa_dist.heads.segmentation.linear import LinearDecoder, LinearDecoderConfig
from essa_dist.heads.segmentation.setr_pup import SETRPUP, SETRPUPConfig
from essa_dist.settings import Config

DECODERS: dict[str, tuple[type[Config], type[Any]]] = {
    "dpt": (DPTConfig, DPT),
    "linear": (LinearDecoderConfig, LinearDecoder),
    "setr_pup": (SETRPUPConfig, SETRPUP),
}
"""Name, as in ``decoder.kind``, to its settings and its class."""


def _written_short(value: Any) -> Any:
    """``linear`` for ``{kind: linear}``."""
    return {"kind": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    DecoderConfig: TypeAlias = Config
else:
    DecoderConfig = Annotated[
        Union[tuple(config for config, _ in DECODERS.values())],  # noqa: UP007  (made from the dict)
        Field(discriminator="kind"),
        BeforeValidator(_written_short),
    ]
    """One decoder's Config, chosen by ``kind``; ``decoder=linear`` alone means its defaults."""


def build_decoder(config: DecoderConfig, backbone: Backbone, n_outputs: int, *, seed: int = 0) -> Decoder:
    """The untrained decoder of ``config`` over ``backbone``; its weights come from ``seed`` alone.

    Raises UsageError for settings that don't fit the backbone.
    """
    settings: Mapping[str, Any] = config.model_dump()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder: Decoder = DECODERS[settings["kind"]][1](config, backbone, n_outputs)
    return decoder


__all__ = ["DECODERS", "Decoded", "Decoder", "DecoderConfig", "build_decoder", "decode"]
