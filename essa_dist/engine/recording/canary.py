"""The canary: the quality of the teacher's features on a fixed set of images, every so many steps of a run.

With labels it is the balanced accuracy of k nearest neighbours, without them RankMe (arXiv:2210.02885), the effective
number of dimensions. Shapes: n images of the probe, S the side that the model sees, C feature channels, W ranks.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from essa_dist.data.shards import PackedImages
from essa_dist.distributed.collectives import all_gather, all_reduce_sum, rank, world_size
from essa_dist.engine.schedules import Duration
from essa_dist.errors import UsageError
from essa_dist.evaluation.features import prepare_image
from essa_dist.evaluation.knn import knn_probabilities
from essa_dist.evaluation.metrics import classification_metrics
from essa_dist.objectives.diagnostics import rankme
from essa_dist.settings import Config

log = logging.getLogger(__name__)

Embedder = Callable[[Tensor], Tensor]
"""uint8 pixels [B, 3, S, S] on the CPU to features [B, C] of the teacher; on all ranks alike often."""

BATCH = 32
"""Images of a forward pass, always as many: so features depend neither on the number of ranks nor on the probe's size."""


class CanaryConfig(Config):
    every: Duration | None = None
    """How often the teacher is looked at: updates, or epochs as in 1ep, and at the start and the end (0: only then; null:
    never)."""
    data: str = ""
    """Packed images to look with, `DIR` or `DIR:split`, best none that are trained on (nothing: the training images).
    Labelled: k-NN among them; unlabelled: RankMe of their features."""
    images: int = Field(512, ge=4)
    """At most so many of them, evenly spread over the set."""
    k: int = Field(20, ge=1)
    """Neighbours that vote."""
    max_drop: float | None = Field(None, gt=0, lt=1)
    """Stop the run when the value is lower than at the start by more than this share of it (null: never)."""
    stop_after: int | None = Field(None, ge=1)
    """Stop the run after so many looks in a row without a new best (null: never)."""
    rollback: bool = False
    """Keep the checkpoint of the best look, and let `essa evaluate` and `essa export` take it in place of the newest;
    resume still goes on from the newest."""

    @model_validator(mode="after")
    def _looks(self) -> "CanaryConfig":
        wanted = {"data": self.data, "max_drop": self.max_drop, "stop_after": self.stop_after}
        idle = [name for name, value in {**wanted, "rollback": self.rollback}.items() if value]
        if self.every is None and idle:
            raise ValueError(f"canary.{idle[0]} does nothing without canary.every: say how often, as in 1ep")
        return self


class Probe:
    """A fixed set of images, of which each rank holds its share: every W-th, decoded and resized once.

    Raises UsageError for a labelled set that k-NN can't be asked of, DataError for an image that can't be read.
    """

    def __init__(self, images: PackedImages, config: CanaryConfig, *, image_size: int) -> None:
        n = min(config.images, len(images))
        chosen = np.linspace(0, len(images) - 1, n).round().astype(np.int64)
        self.size, self.k = n, config.k
        self.labels: NDArray[np.int64] | None = None if images.labels is None else images.labels[chosen]
        self.name = "canary_rankme" if self.labels is None else "canary_knn"
        self.identity = {
            "probe": images.manifest.name,
            "split": images.split,
            "samples": [shard.sha256 for shard in images.manifest.shards if shard.split == images.split],
            "images": n,
            "image_size": image_size,
            "k": config.k,
        }
        if self.labels is not None:
            patients = None if images.patients is None else images.patients[chosen]
            self.half = halves(self.labels, patients)
            self.classes = len(images.classes)
            self._check(images)
        mine = chosen[rank() :: world_size()].tolist() or [
            int(chosen[0])
        ]  # more ranks than images: one for show
        stored = zip(mine, images.read_many(mine), strict=True)
        self.pixels = torch.stack([prepare_image(images.decode(i, data), image_size) for i, data in stored])

    def _check(self, images: PackedImages) -> None:
        assert self.labels is not None
        where = f"canary.data={images.folder}:{images.split}"
        if len(np.unique(self.labels)) < 2:
            raise UsageError(f"{where} shows one class only: give a split with at least two")
        bank = min(int((self.half == 0).sum()), int((self.half == 1).sum()))
        if self.k > bank:
            raise UsageError(
                f"canary.k={self.k} is more than the {bank} images that each of the {self.size} can be compared with: "
                f"lower canary.k to at most {max(bank, 1)}, or give more images"
            )

    def value(self, embed: Embedder) -> float:
        """The canary's value, the same on all ranks, which must all call it."""
        features_nC = self._features(embed)
        value = 0.0
        if rank() == 0:  # one rank's word: what all decide by must not differ in the last bit
            on_cpu = features_nC.cpu()
            value = self._knn(on_cpu) if self.labels is not None else float(rankme(on_cpu))
        return float(
            all_reduce_sum(torch.tensor([value], dtype=torch.float64, device=features_nC.device)).item()
        )

    def _features(self, embed: Embedder) -> Tensor:
        """[n, C] fp32, in the order of the probe."""
        share = math.ceil(self.size / world_size())
        features: list[Tensor] = []
        for start in range(0, share, BATCH):  # as often on every rank, with as many images
            wanted = torch.arange(start, start + BATCH).clamp(max=len(self.pixels) - 1)
            features.append(embed(self.pixels[wanted]).float())
        own_SC = torch.cat(features)[:share]
        parts_WSC = all_gather(own_SC).unflatten(0, (-1, share))
        features_nC: Tensor = parts_WSC.transpose(0, 1).flatten(0, 1)[: self.size]
        return features_nC

    def _knn(self, features_nC: Tensor) -> float:
        """Each half is asked of the other."""
        labels, half = torch.as_tensor(self.labels), torch.as_tensor(self.half)
        predicted = torch.empty_like(labels)
        for side in (0, 1):
            asked, bank = half == side, half != side
            votes = knn_probabilities(
                features_nC[bank], labels[bank], features_nC[asked], num_classes=self.classes, k=self.k
            )
            predicted[asked] = votes.argmax(dim=1)
        return classification_metrics(predicted, labels, num_classes=self.classes).balanced_accuracy


def halves(labels: NDArray[np.int64], patients: NDArray[np.int32] | None) -> NDArray[np.int64]:
    """0 or 1 for each image: classes are spread evenly, images of a patient stay together.

    Neighbours of the same patient would be found however bad the features are.
    """
    groups = np.arange(len(labels)) if patients is None else patients
    half = np.zeros(len(labels), dtype=np.int64)
    taken: dict[int, list[int]] = {}  # of each class, the images in either half
    for group in dict.fromkeys(groups.tolist()):
        members = groups == group
        counts = taken.setdefault(int(labels[members][0]), [0, 0])
        side = int(counts[1] < counts[0])
        half[members] = side
        counts[side] += int(members.sum())
    return half


class Canary:
    """Looks, remembers the best, and says when to stop. Everything it knows is in :meth:`state`."""

    name = "canary"

    def __init__(self, config: CanaryConfig, probe: Probe, embed: Embedder) -> None:
        self.config, self.probe, self.embed = config, probe, embed
        self.start: float | None = None
        self.last: float | None = None
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        """Looks since then."""

    @property
    def every(self) -> Duration:
        """How often it looks."""
        return self.config.every or 0

    @property
    def wants_start(self) -> bool:
        """Whether it has yet to see what it compares with."""
        return self.start is None

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the best look is the run's result."""
        return self.config.rollback

    def look(self, step: int) -> dict[str, float]:
        """The value after ``step`` updates and the best so far, as entries of a row of metrics; on all ranks."""
        value = self.last = self.probe.value(self.embed)
        if self.start is None:
            self.start = value
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1
        name = self.probe.name
        log.info(
            "canary, step %d: %s %s, at the start %s, best %s after step %d",
            step,
            {"canary_knn": "k-NN", "canary_rankme": "RankMe"}[name],
            *map(self._shown, (value, self.start, self.best)),
            self.best_step,
        )
        return {name: value, f"{name}_best": self.best}

    def is_best(self, step: int) -> bool:
        """Whether the look after ``step`` is the best."""
        return self.best is not None and self.best_step == step

    def reason_to_stop(self) -> str | None:
        """Why the run should end here, in words; None: it should go on."""
        c = self.config
        if self.start is None or self.last is None or self.best is None:
            return None
        if c.max_drop is not None and self.last < self.start * (1 - c.max_drop):
            return (
                f"{self.probe.name} fell from {self._shown(self.start)} to {self._shown(self.last)}, by more than "
                f"canary.max_drop={c.max_drop:g}"
            )
        if c.stop_after is not None and self.since_best >= c.stop_after:
            return (
                f"{self.probe.name} had no new best in {self.since_best} looks (canary.stop_after): "
                f"{self._shown(self.best)} after step {self.best_step}"
            )
        return None

    def _shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.probe.name == "canary_knn" else f"{value:.1f}"

    def state(self) -> dict[str, Any]:
        """For the checkpoint; of JSON's types."""
        kept = {name: getattr(self, name) for name in ("start", "last", "best", "best_step", "since_best")}
        return kept | {"identity": self.probe.identity}

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up :meth:`state`; one of another probe, whose values can't be compared, is left with a warning."""
        if not state:
            return
        if state["identity"] != self.probe.identity:
            log.warning(
                "the canary's images or settings are others than before: its comparisons start anew at this step"
            )
            return
        for name in ("start", "last", "best", "best_step", "since_best"):
            setattr(self, name, state[name])
