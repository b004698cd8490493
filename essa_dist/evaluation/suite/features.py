"""Features of a model over a data set: taken from the disk where they were extracted before, else extracted."""

import hashlib
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.data.shards import PackedImages
from essa_dist.distributed.collectives import rank
from essa_dist.evaluation.probe import FeatureConfig, features_of
from essa_dist.evaluation.ranks import everywhere
from essa_dist.evaluation.suite.store import Store
from essa_dist.export.models import load_model

log = logging.getLogger(__name__)

VERSION = 1
"""To be raised when the same model and images would give other features."""


class Identity(NamedTuple):
    """What decides a model's features."""

    sha256: str
    """Of its tensors, module tree (norms' epsilons, activations) and pixel statistics."""
    image_size: int


class Models:
    """Models by reference, of which one is in memory at a time."""

    def __init__(self) -> None:
        self._identities: dict[str, Identity] = {}
        self._ref = ""
        self._backbone: Backbone | None = None

    def identity(self, ref: str) -> Identity:
        """Raises what ``load_model`` raises."""
        if ref not in self._identities:
            self._identities[ref] = _identity(self.load(ref))
        return self._identities[ref]

    def load(self, ref: str) -> Backbone:
        if self._backbone is None or ref != self._ref:
            self._backbone = None  # the old one goes before the new one comes
            self._ref, self._backbone = ref, load_model(ref)
        return self._backbone


def _identity(backbone: Backbone) -> Identity:
    digest = hashlib.sha256(parameters_sha256(backbone).encode())
    for name, buffer in sorted(backbone.named_buffers()):
        digest.update(name.encode())
        digest.update(buffer.detach().cpu().numpy().tobytes())
    digest.update(f"{backbone.vit}{backbone.mean}{backbone.std}".encode())
    return Identity(digest.hexdigest(), backbone.image_size)


def made_from(identity: Identity, images: PackedImages, config: FeatureConfig) -> dict[str, Any]:
    """Everything that decides the features, for the name under which they are kept."""
    manifest = images.manifest.model_dump(include={"shards", "index_sha256"})
    return {
        "version": VERSION,
        "model": identity.sha256,
        "manifest": hashlib.sha256(repr(manifest).encode()).hexdigest(),
        "split": images.split,
        "window": images.window,
        "image_size": config.image_size or identity.image_size,
        "crop": config.crop,
        "pooling": config.pooling,
        "precision": config.precision,
    }


def features(
    models: Models,
    ref: str,
    images: PackedImages,
    config: FeatureConfig,
    *,
    store: Store,
    name: str,
    device: torch.device,
) -> Tensor:
    """[n, C] fp32 on the CPU. All ranks must call it; the first of them writes."""
    key = made_from(models.identity(ref), images, config)
    found = store.read(name, key)
    kept = None if found is None else found[0].get("features")
    if everywhere(kept is not None and len(kept) == len(images)):
        assert kept is not None
        return kept
    log.info("%s: features of %d images", name, len(images))
    made = features_of(models.load(ref), images, config, device)
    if rank() == 0:
        store.write(name, key, {"features": made}, {"model": ref, "n": len(made)})
    return made
