"""Build a backbone from its config: architecture through timm, then weights."""

import difflib
import logging
import socket
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import huggingface_hub.constants
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from essa_dist.backbones.recompute import recompute_blocks
from essa_dist.backbones.undrawn import Undrawn
from essa_dist.backbones.vit import Backbone
from essa_dist.backbones.weights import (
    EMBEDDED,
    OFFLINE_HELP,
    file_sha256,
    fill,
    load_into,
    say_once,
    weights_sha256,
)
from essa_dist.distributed.collectives import rank
from essa_dist.errors import UsageError, WeightsError
from essa_dist.settings import Config

log = logging.getLogger(__name__)

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2_vits14": ("vit_small_patch14_dinov2", {}),
    "dinov2_vitb14": ("vit_base_patch14_dinov2", {}),
    "dinov2_vitl14": ("vit_large_patch14_dinov2", {}),
    "dinov2_vitg14": ("vit_giant_patch14_dinov2", {}),
    # DINOv2 was never released at this size; the shape is for tests and small machines.
    "dinov2_vitt14": ("vit_tiny_patch16_224", {"patch_size": 14, "img_size": 518, "init_values": 1e-5}),
}


class BackboneConfig(Config):
    name: str = "dinov2_vitl14"
    """A timm vision transformer, or dinov2_vit{t,s,b,l,g}14."""
    weights: str = "auto"
    """auto: the hub through timm, else an embedded file that fits, else an error; random: untrained; or a file or folder."""
    allow_missing: tuple[str, ...] = ()
    """Tensors, or patterns like blocks.11.*, that the weights may lack; they start from random values."""
    in_chans: int = Field(3, ge=1)
    """Channels of the images; the weights' three are summed to one, or spread over another number."""
    pos_embed: Literal["auto", "timm", "dinov2"] = "auto"
    """How position embeddings are resized to the crops: DINOv2's rule (auto: for its shapes) or timm's."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels (0..1) of each channel that images are normalised with (null: the weights' own) ..."""
    std: tuple[float, ...] | None = None
    """... and their standard deviation."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth, growing linearly with depth to this rate; 0 in ESSA."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""


def build_architecture(config: BackboneConfig) -> Backbone:
    """The module with untrained weights. Raises UsageError for a name that is not a timm ViT."""
    _check_statistics(config)
    timm_name, kwargs = ALIASES.get(config.name, (config.name, {}))
    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(timm_name, [*timm.list_models("*vit*"), *ALIASES], n=3) or list(
            ALIASES
        )
        raise UsageError(f"backbone.name={config.name!r} is not a timm model; near it: {', '.join(near)}")
    try:
        vit = timm.create_model(
            timm_name,
            pretrained=False,
            num_classes=0,
            in_chans=config.in_chans,
            global_pool="",
            dynamic_img_size=True,
            drop_path_rate=config.drop_path,
            **kwargs,
        )
    except TypeError as error:
        raise UsageError(f"backbone.name={config.name!r} is not a vision transformer: {error}") from error
    if not isinstance(vit, VisionTransformer | Eva) or vit.cls_token is None:
        raise UsageError(
            f"backbone.name={config.name!r} must be a timm VisionTransformer or Eva with a class token, got {type(vit).__name__}"
        )
    if config.checkpoint_activations:
        recompute_blocks(vit)
    rule = config.pos_embed
    if rule == "auto":
        rule = "dinov2" if "dinov2" in config.name else "timm"
    if rule == "dinov2" and isinstance(vit, Eva):
        raise UsageError(
            f"backbone.pos_embed=dinov2 is for plain ViTs; {config.name} has its own rule: use auto"
        )
    return Backbone(vit, name=timm_name, pos_embed=rule, mean=config.mean, std=config.std)


def _check_statistics(config: BackboneConfig) -> None:
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != config.in_chans:
            raise UsageError(
                f"backbone.{key} has {len(values)} values, and backbone.in_chans is {config.in_chans}: give one for each"
            )


def build_backbone(config: BackboneConfig, *, seed: int = 0) -> Backbone:
    """Architecture with the weights that ``config.weights`` asks for; what was done is logged and recorded.

    ``seed`` decides random weights and nothing else; the global random state is left as it was.
    The backbone gets attributes for the record: ``weights_source``, ``weights_sha256`` (None: no file),
    ``load_report`` and ``channel_rule``.
    Raises WeightsError when the weights can't be had; it is never random unless asked.
    """
    drawn = config.weights == "random" or bool(config.allow_missing)
    with torch.random.fork_rng(devices=[]), nullcontext() if drawn else Undrawn():
        torch.manual_seed(seed)
        backbone = build_architecture(config)
    backbone.weights_source, backbone.weights_sha256 = _load(backbone, config)
    backbone.mean, backbone.std = config.mean or backbone.mean, config.std or backbone.std
    return backbone


def _load(backbone: Backbone, config: BackboneConfig) -> tuple[str, str | None]:
    if config.weights == "random":
        log.log(
            logging.WARNING if rank() == 0 else logging.DEBUG,  # once is enough
            "backbone %s starts from RANDOM weights, as asked by backbone.weights=random",
            backbone.name,
        )
        return "random", None
    if config.weights != "auto":
        path = Path(config.weights).expanduser()
        backbone.load_report = load_into(backbone, path, allow_missing=config.allow_missing)
        return path.name, weights_sha256(path)
    reason = _load_from_hub(backbone)
    if reason is None:
        return f"timm hub: {backbone.vit.pretrained_cfg.get('hf_hub_id') or backbone.name}", None
    embedded = EMBEDDED.get(backbone.name.split(".")[0])
    if embedded is not None and embedded.is_file() and config.name not in ALIASES:
        say_once(logging.WARNING, f"{reason}: using the embedded weights assets/weights/{embedded.name}")
        backbone.load_report = load_into(backbone, embedded)
        return f"embedded: {embedded.name}", file_sha256(embedded)
    raise WeightsError(
        f"pretrained weights of {config.name} can't be fetched ({reason}); "
        + OFFLINE_HELP.format(name=_hub_name(backbone))
    )


def _hub_name(backbone: Backbone) -> str:
    tag = backbone.vit.pretrained_cfg.get("tag") or ""
    return f"{backbone.name}.{tag}" if tag and "." not in backbone.name else backbone.name


def _load_from_hub(backbone: Backbone) -> str | None:
    """Load timm's pretrained weights of the same architecture; the reason if that is impossible."""
    if backbone.name not in timm.list_pretrained() and not timm.list_pretrained(f"{backbone.name}.*"):
        return "timm has no pretrained weights of this architecture"
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = not _hub_resolves()  # the local cache still answers
    try:
        # Pooled as timm does, so that it has the norm that its weights have: fill() finds that one's place in ours.
        source = timm.create_model(backbone.name, pretrained=True, num_classes=0)
        backbone.load_report = fill(backbone, source.state_dict(), source="the timm hub")
    except LocalEntryNotFoundError:
        return "the hub can't be reached, and its local cache has no copy"
    except Exception as error:  # every transport has its own errors; all mean the same to the user
        return f"{type(error).__name__}: {(str(error).strip() or 'no detail').splitlines()[0][:120]}"
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
    return None


def _hub_resolves() -> bool:
    """Whether it makes sense to ask the hub: its client retries for 50 s where a look-up tells at once."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return not huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
