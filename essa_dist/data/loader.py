"""Batches of crops in the order of the sample plan, the same for any number of ranks and workers."""

from collections.abc import Generator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from essa_dist.data.batch import Batch
from essa_dist.data.dali.decoder import DaliDecoder
from essa_dist.data.dali.encoded import EncodedBatches
from essa_dist.data.masks import MaskConfig
from essa_dist.data.pixels import Window
from essa_dist.data.plan import SamplePlan, rank_slice
from essa_dist.data.planned import PlannedLoader
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import CropBatches
from essa_dist.data.remote import CacheConfig
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.steps import plan_steps
from essa_dist.data.stream import StreamConfig
from essa_dist.data.views import CropConfig
from essa_dist.data.workers import count_workers
from essa_dist.errors import UsageError
from essa_dist.settings import Config


class DataConfig(Config):
    """What is trained on, and how it is cropped and masked."""

    train: str = ""
    """The packed data set: `DIR`, `DIR:split` or a URL of one (`s3://bucket/PACKED:train`). Required for `essa adapt`."""
    order: Literal["plan", "stream"] = "plan"
    """`plan`: every sample once an epoch, in an order that any number of ranks and workers repeats exactly. `stream`:
    `train` names WebDataset tars without an index, drawn at random; a resumed run goes on with other draws."""
    stream: StreamConfig = StreamConfig()
    """Tars without an index, for `order=stream`."""
    decoder: Literal["torchvision", "dali"] = "torchvision"
    """Who decodes, crops and changes the images. `torchvision`: the worker processes, on the CPU, by the formulas of
    torchvision's v2 transforms. `dali`: NVIDIA DALI, on the GPU where there is one; same samples, boxes, flips and
    amounts, colours within a few grey levels."""
    window: Window = "header"
    """Real values shown black and white, e.g. `[-1000, 400]` in Hounsfield units, of all images (an ordinary 8-bit one has
    the values 0 to 255); `header`: each image's own."""
    window_jitter: float = Field(default=0, ge=0, le=0.9)
    """16-bit images: the window's centre moves by up to this share of its width, and its width changes by up to it."""
    crops: CropConfig = CropConfig()
    """Multi-crop augmentation."""
    masks: MaskConfig = MaskConfig()
    """Patches hidden from the student."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that read, decode and crop, for each rank (with `dali` they read, and DALI has as many threads); 0: the
    training process does it itself; `auto`: the rank's share of the machine's CPU cores, 1 to 16."""
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
    """How many different samples may be undecodable, counted by each rank of those it meets; each is replaced by the next one of
    the data set."""

    @model_validator(mode="after")
    def _decoded_here(self) -> "DataConfig":
        for key, value, why in (
            ("decoder", "dali", "DALI takes encoded images"),
            ("order", "stream", "a stream has no index of its images"),
        ):
            if self.decoded and getattr(self, key) == value:
                raise ValueError(
                    f"decoded={self.decoded} and {key}={value} exclude each other ({why}): choose one"
                )
        return self

    def open(self) -> PackedImages:
        """The images of ``train``, seen through ``window``. Raises as :func:`open_packed` does."""
        if self.order == "stream":
            raise UsageError(
                "data.order=stream has no sample plan, so its samples can't be named: use essa pack index"
            )
        window = None if self.window == "header" else self.window
        return open_packed(self.train, prefer=("unlabelled", "train"), window=window, cache=self.cache)


class CropLoader(PlannedLoader[Batch]):
    """Makes one rank's batches of a run.

    ``device``: where DALI decodes; its batches are on it already. Raises UsageError where the global batch can't be
    shared evenly by the ranks, a crop is no whole number of patches, there are fewer than two samples, or DALI is
    asked for and missing.
    """

    def __init__(
        self,
        images: PackedImages,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        patch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        check_patches(config.crops, patch_size)
        mine = rank_slice(global_batch, rank, world_size)
        workers = count_workers(config.workers)
        steps = plan_steps(
            SamplePlan(len(images), seed),
            images.storage,
            global_batch,
            rank=rank,
            world_size=world_size,
            workers=workers,
            read_ahead=config.read_ahead,
        )
        maker = EncodedBatches if config.decoder == "dali" else CropBatches
        batches = maker(
            images,
            config.crops,
            config.masks,
            seed=seed,
            global_batch=global_batch,
            mine=mine,
            patch_size=patch_size,
            allowed=config.bad_sample_quota.allowed(len(images)),
            window_jitter=config.window_jitter,
        )
        self._dali = (
            DaliDecoder(batches, threads=max(1, workers), device=torch.device(device))
            if isinstance(batches, EncodedBatches)
            else None
        )
        super().__init__(
            batches,
            steps,
            quota=config.bad_sample_quota,
            workers=workers,
            prefetch=config.prefetch,
            pin_memory=self._dali is None,
        )

    def _finished(self, made: Generator[Any, None, None]) -> Generator[Any, None, None]:
        return self._dali.batches(made) if self._dali else made


def check_patches(crops: CropConfig, patch_size: int) -> None:
    for name, size in (("global_size", crops.global_size), ("local_size", crops.local_size)):
        if size % patch_size:
            below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
            nearest = " or ".join(str(option) for option in (below, above) if option)
            raise UsageError(
                f"data.crops.{name} {size} is no multiple of the patch size {patch_size} of this model; "
                f"use {nearest}"
            )
