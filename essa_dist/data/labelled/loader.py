"""Batches of labelled images for training, in the order of the sample plan over a subset of a packed set."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from torch import Tensor

from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.labels import Labels
from essa_dist.data.labelled.policies import AugmentConfig, Recipe
from essa_dist.data.labelled.subset import choose_subset
from essa_dist.data.labelled.transforms import Evaluation, Statistics, augment
from essa_dist.data.pixels import Window
from essa_dist.data.plan import SamplePlan
from essa_dist.data.planned import PlannedLoader
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import Origin, SampleBatches
from essa_dist.data.remote import CacheConfig
from essa_dist.data.shards import PackedImages, open_packed, place_of
from essa_dist.data.steps import plan_steps
from essa_dist.data.workers import count_workers
from essa_dist.settings import Config


class LabelledDataConfig(Config):
    """Labelled images: which are trained on, and how they are prepared."""

    train: str = ""
    """The packed data set: `DIR`, `DIR:split` or a URL of one; without a split, its `train`. Required."""
    val: str = ""
    """What the best checkpoint is chosen on; empty: the split `val` of `train`'s set."""
    test: str = ""
    """What is judged once, at the end; empty: the split `test` of `train`'s set."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled training images that is used, e.g. 0.01: classes in proportion, at least one image of each,
    whole patients."""
    shots: int | None = Field(default=None, ge=1)
    """In place of `fraction`: this many training images of each class."""
    subset_seed: int = Field(default=0, ge=0)
    """Draws the images of `fraction` and `shots`; the smaller choice of a seed is inside its larger ones."""
    image_size: int = Field(default=224, ge=8)
    """Pixels, square, of what the model sees; a multiple of its patch size."""
    augment: AugmentConfig = AugmentConfig()
    """How training images are changed."""
    evaluation: Evaluation = "whole"
    """How others are prepared. `whole`: squeezed to a square; `centre_crop`: the shorter side made `image_size` /
    `evaluation_share`, then cut; `native`: at their own size, one by one (segmentation by windows)."""
    evaluation_share: float = Field(default=0.875, gt=0, le=1)
    """`centre_crop`: 0.875 is 224 of 256 pixels."""
    window: Window = "header"
    """Real values shown black and white, e.g. `[-1000, 400]` in Hounsfield units, of all images; `header`: each image's
    own."""
    window_jitter: float = Field(default=0, ge=0, le=0.9)
    """16-bit training images: the window's centre moves by up to this share of its width, and its width changes by up to
    it."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that read, decode and change training images, for each rank, and threads that do so in evaluation; 0:
    the training process does it itself; `auto`: the rank's share of the machine's CPU cores, 1 to 16."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that each worker prepares ahead; they wait in shared memory."""
    read_ahead: int = Field(default=2, ge=0)
    """Batches after those that remote storage is told of, so that it can fetch them in time; from a disk: no use."""
    cache: CacheConfig = CacheConfig()
    """How remote data are fetched, and kept on this machine."""
    decoded: str = ""
    """A folder of this machine in which all its processes share decoded images: other trials, ranks, workers, later runs.
    Best on a fast disk (memory that is free keeps what is read) or in `/dev/shm`; empty: images are decoded each time."""
    decoded_gb: float = Field(default=16, gt=0)
    """GiB that the files of `decoded` may take, all data sets together; what comes first is kept."""
    bad_sample_quota: BadQuota = BadQuota()
    """How many different training samples may be undecodable, counted by each rank of those it meets; each is replaced by
    the next one of those trained on."""

    @model_validator(mode="after")
    def _one_choice(self) -> "LabelledDataConfig":
        if self.shots is not None and self.fraction != 1:
            raise ValueError(
                f"fraction={self.fraction:g} and shots={self.shots} contradict each other: choose one"
            )
        return self

    def open(self, role: Literal["train", "val", "test"] = "train") -> PackedImages:
        """The images of a role. Raises as :func:`open_packed` does."""
        ref = getattr(self, role) or (self.train and f"{place_of(self.train)}:{role}")
        window = None if self.window == "header" else self.window
        return open_packed(ref, prefer=(role,), window=window, cache=self.cache)

    def choose(self, images: PackedImages, labels: Labels) -> NDArray[np.int64]:
        """The samples that are trained on; see :func:`choose_subset`."""
        return choose_subset(images, labels, fraction=self.fraction, shots=self.shots, seed=self.subset_seed)


class SubsetPlan(SamplePlan):
    """The sample plan over some samples of a set, which it names by their numbers in the set."""

    def __init__(self, chosen: NDArray[np.int64], seed: int) -> None:
        super().__init__(len(chosen), seed)
        self.chosen = chosen
        """Ascending."""

    def samples(self, epoch: int, places: ArrayLike) -> NDArray[np.int64]:
        """The samples at ``places`` (0 .. n - 1) of an epoch."""
        return self.chosen[super().samples(epoch, places)]

    def places(self, epoch: int, samples: ArrayLike) -> NDArray[np.int64]:
        """When ``samples`` are seen in an epoch."""
        return super().places(epoch, np.searchsorted(self.chosen, samples))


class _Sample(NamedTuple):
    image: Tensor  # uint8 [3, S, S]
    target: Tensor


class LabelledBatches(SampleBatches[_Sample, LabelledBatch]):
    """What a worker does: one rank's batch of one step."""

    def __init__(
        self,
        images: PackedImages,
        labels: Labels,
        recipe: Recipe,
        image_size: int,
        *,
        among: NDArray[np.int64],
        seed: int,
        allowed: int,
        window_jitter: float = 0,
    ) -> None:
        super().__init__(images, seed=seed, allowed=allowed, window_jitter=window_jitter, among=among)  # type: ignore[arg-type]
        self.labels, self.recipe, self.image_size = labels, recipe, image_size
        self.statistics = Statistics(images.manifest.mean, images.manifest.std)

    def prepare(self, i: int, encoded: bytes | None, seed: int) -> _Sample:
        """See :class:`SampleBatches`. A broken mask counts as a broken image."""
        image = self.images.decode(i, encoded=encoded, bounds=self.bounds(i, seed))
        target = self.labels.target(self.images, i)
        mask = target if self.labels.kind == "mask" else None
        image, mask = augment(image, mask, self.recipe, self.image_size, self.statistics, seed)
        return _Sample(image, target if mask is None else mask)

    def together(self, samples: list[_Sample], origin: Origin) -> LabelledBatch:
        """See :class:`SampleBatches`."""
        return LabelledBatch(
            images=torch.stack([sample.image for sample in samples]),
            targets=torch.stack([sample.target for sample in samples]),
            indices=torch.tensor(origin.indices),
            keys=origin.keys,
            step=origin.request.step,
            bad=origin.bad,
            why=origin.why,
        )


class LabelledLoader(PlannedLoader[LabelledBatch]):
    """Makes one rank's batches of a run: the same for any number of ranks and workers, from any step on.

    ``chosen``: the samples that are trained on, ascending; where they are fewer than a batch, a batch goes on into the
    next epoch. Raises UsageError where the global batch can't be shared evenly by the ranks, there are fewer than two
    samples, or masks can't follow the augmentation.
    """

    def __init__(
        self,
        images: PackedImages,
        labels: Labels,
        config: LabelledDataConfig,
        *,
        chosen: NDArray[np.int64],
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        workers = count_workers(config.workers)
        steps = plan_steps(
            SubsetPlan(chosen, seed),
            images.storage,
            global_batch,
            rank=rank,
            world_size=world_size,
            workers=workers,
            read_ahead=config.read_ahead,
        )
        batches = LabelledBatches(
            images,
            labels,
            config.augment.recipe(masks=labels.kind == "mask"),
            config.image_size,
            among=chosen,
            seed=seed,
            allowed=config.bad_sample_quota.allowed(len(chosen)),
            window_jitter=config.window_jitter,
        )
        super().__init__(
            batches, steps, quota=config.bad_sample_quota, workers=workers, prefetch=config.prefetch
        )
