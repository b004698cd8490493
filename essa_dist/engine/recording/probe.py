"""What the canary looks with: a fixed set of images and a protocol that makes one number of their features.

With labels that is the balanced accuracy of k nearest neighbours or of a linear probe, without them RankMe
(arXiv:2210.02885), the effective number of dimensions.
Shapes: n images of the probe, S the side that the model sees, C feature channels, W ranks.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from essa_dist.data.shards import PackedImages
from essa_dist.distributed.collectives import all_gather, all_reduce_sum, rank, world_size
from essa_dist.errors import UsageError
from essa_dist.evaluation.features import prepare_image
from essa_dist.evaluation.knn import knn_probabilities
from essa_dist.evaluation.linear import linear_probabilities
from essa_dist.evaluation.metrics import classification_metrics
from essa_dist.evaluation.samples import Samples
from essa_dist.objectives.diagnostics import rankme
from essa_dist.settings import Config

Embedder = Callable[[Tensor], Tensor]
"""uint8 pixels [B, 3, S, S] on the CPU to features [B, C] of the teacher; on all ranks alike often."""
CanaryProtocol = Literal["knn", "linear", "rankme"]

BATCH = 32
"""Images of a forward pass, always as many: so features depend neither on the number of ranks nor on the probe's size."""
STRENGTH = 0.1
"""C of the linear probe (see evaluation/linear.py). Choosing it by cross-validation took 36 times as long (1.24 s against
0.034 s a look, 512 images of 8 classes, 384 channels) and moved the value by one point."""
TITLES: dict[CanaryProtocol, str] = {"knn": "k-NN", "linear": "linear probe", "rankme": "RankMe"}


class ProbeConfig(Config):
    data: str = ""
    """Packed images to look with, `DIR` or `DIR:split`, best none that are trained on (nothing: the training images)."""
    images: int = Field(512, ge=4)
    """At most so many of them, evenly spread over the set."""
    protocol: CanaryProtocol | None = None
    """How they are judged. Labelled images, each half asked of the other: knn (nearest neighbours), linear (logistic
    regression). Any images: rankme (effective dimensions of their features). null: knn with labels, rankme without."""
    k: int = Field(20, ge=1)
    """Neighbours that vote in knn."""


class Probe:
    """A fixed set of images, of which each rank holds its share: every W-th, decoded and resized once.

    Raises UsageError for a set that the protocol can't be asked of, DataError for an image that can't be read.
    """

    def __init__(self, images: PackedImages, config: ProbeConfig, *, image_size: int) -> None:
        n = min(config.images, len(images))
        chosen = np.linspace(0, len(images) - 1, n).round().astype(np.int64)
        self.size, self.k = n, config.k
        self.protocol = config.protocol or ("rankme" if images.labels is None else "knn")
        self.identity = {
            "probe": images.manifest.name,
            "split": images.split,
            "samples": [shard.sha256 for shard in images.manifest.shards if shard.split == images.split],
            "images": n,
            "image_size": image_size,
        }
        # A run of a version that knew no other labelled protocol goes on as it is.
        self.identity |= {"k": self.k} if self.protocol == "knn" else {"protocol": self.protocol}
        if self.is_share:
            self._divide(images, chosen)
        mine = chosen[rank() :: world_size()].tolist() or [
            int(chosen[0])
        ]  # more ranks than images: one for show
        stored = zip(mine, images.read_many(mine), strict=True)
        self.pixels = torch.stack([prepare_image(images.decode(i, data), image_size) for i, data in stored])

    @property
    def name(self) -> str:
        """Of the value, in a row of metrics."""
        return f"canary_{self.protocol}"

    @property
    def title(self) -> str:
        """Of the value, in a sentence."""
        return TITLES[self.protocol]

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of right answers, from 0 to 1."""
        return self.protocol != "rankme"

    def _divide(self, images: PackedImages, chosen: NDArray[np.int64]) -> None:
        """Halves of the labelled probe. Raises UsageError where one can't be asked of the other."""
        where = f"canary.data={images.folder}:{images.split}"
        if images.labels is None:
            raise UsageError(
                f"canary.protocol={self.protocol} needs one class for every image, which {where} doesn't have: give a "
                "labelled set, or canary.protocol=rankme"
            )
        self.labels = images.labels[chosen]
        self.half = halves(self.labels, None if images.patients is None else images.patients[chosen])
        self.classes = len(images.classes)
        if len(np.unique(self.labels)) < 2:
            raise UsageError(f"{where} shows one class only: give a split with at least two")
        banks = [self.labels[self.half == side] for side in (0, 1)]
        if self.protocol == "linear" and min(len(np.unique(bank)) for bank in banks) < 2:
            raise UsageError(
                f"canary.protocol=linear learns from either half of the {self.size} images of {where}, and one half shows "
                "one class only: give more images of the others, or canary.protocol=knn"
            )
        fewest = min(map(len, banks))
        if self.protocol == "knn" and self.k > fewest:
            raise UsageError(
                f"canary.k={self.k} is more than the {fewest} images that each of the {self.size} can be compared with: "
                f"lower canary.k to at most {max(fewest, 1)}, or give more images"
            )

    def value(self, embed: Embedder) -> float:
        """The canary's value, the same on all ranks, which must all call it."""
        features_nC = self._features(embed)
        value = 0.0
        if rank() == 0:  # one rank's word: what all decide by must not differ in the last bit
            on_cpu = features_nC.cpu()
            value = self._accuracy(on_cpu) if self.is_share else float(rankme(on_cpu))
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

    def _accuracy(self, features_nC: Tensor) -> float:
        """Balanced over the classes; each half is asked of the other."""
        labels, half = torch.as_tensor(self.labels), torch.as_tensor(self.half)
        predicted = torch.empty_like(labels)
        for side in (0, 1):
            asked, bank = half == side, half != side
            predicted[asked] = self._predict(features_nC[bank], labels[bank], features_nC[asked])
        return classification_metrics(predicted, labels, num_classes=self.classes).balanced_accuracy

    def _predict(self, bank_NC: Tensor, labels_N: Tensor, test_MC: Tensor) -> Tensor:
        """Class indices [M]."""
        if self.protocol == "knn":
            shares_MK = knn_probabilities(bank_NC, labels_N, test_MC, num_classes=self.classes, k=self.k)
        else:  # scikit-learn refuses what isn't finite; as zeros such features are worth chance, as they are to k-NN
            bank_NC, test_MC = (torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in (bank_NC, test_MC))
            bank = Samples(bank_NC, labels_N)
            shares_MK, _ = linear_probabilities(bank, test_MC, num_classes=self.classes, strength=STRENGTH)
        return shares_MK.argmax(dim=1)


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
