"""The usual ways to augment, to measure against: torchvision's v2 transforms, on PIL images and on tensors."""

import io
from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from essa_dist.data.batch import Batch
from essa_dist.data.colour import BLUR_RADIUS
from essa_dist.data.masks import MaskConfig
from essa_dist.data.plan import SamplePlan
from essa_dist.data.rank_batches import Origin, RankBatches
from essa_dist.data.shards import PackedImages
from essa_dist.data.steps import Steps
from essa_dist.data.views import BLUR_SIGMA, N_GLOBAL, POLICIES, CropConfig, Scale
from essa_dist.data.workers import Work, as_it_is, begin_worker
from essa_dist.errors import DataError

Crops = list[Tensor]


class PilBatches(RankBatches[Crops, Batch]):
    """Decoded by Pillow, cropped and changed as PIL images."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.transforms = [_transform(self.crops, view) for view in range(N_GLOBAL + self.crops.n_local)]

    def prepare(self, i: int, encoded: bytes | None, seed: int) -> Crops:
        """The views of sample ``i``, global ones first."""
        torch.manual_seed(seed)
        image = self.picture(i, self.images.read(i) if encoded is None else encoded)
        return [transform(image) for transform in self.transforms]

    def picture(self, i: int, encoded: bytes) -> Any:
        """The image that the transforms take. 16-bit ones are decoded and windowed by our code: Pillow can't."""
        if self.images.index.bits[i] == 16:
            pixels = self.images.decode(i, encoded=encoded).permute(1, 2, 0)
            return Image.fromarray(pixels.numpy())
        return Image.open(io.BytesIO(encoded)).convert("RGB")

    def together(self, samples: list[Crops], origin: Origin) -> Batch:
        """See :class:`RankBatches`."""
        views = [torch.stack(view) for view in zip(*samples, strict=True)]
        return Batch(
            global_crops=torch.stack(views[:N_GLOBAL]),
            local_crops=torch.stack(views[N_GLOBAL:]) if views[N_GLOBAL:] else torch.empty(0),
            masks=origin.masks,
            keys=origin.keys,
            step=origin.request.step,
        )


class TensorBatches(PilBatches):
    """Decoded by Pillow, cropped and changed as uint8 tensors."""

    def picture(self, i: int, encoded: bytes) -> Tensor:
        """See :class:`PilBatches`."""
        from torchvision.transforms.v2 import functional

        if self.images.index.bits[i] == 16:
            return self.images.decode(i, encoded=encoded)
        pixels: Tensor = functional.pil_to_tensor(super().picture(i, encoded))
        return pixels


def usual_batches(
    maker: type[PilBatches],
    images: PackedImages,
    crops: CropConfig,
    *,
    batch_size: int,
    workers: int,
    patch_size: int,
    steps: range,
) -> Generator[Batch, None, None]:
    """Batches of the same samples as a ``CropLoader`` of seed 0 gives; DataError where one can't be read."""
    mine = slice(0, batch_size)
    batches = maker(
        images,
        crops,
        MaskConfig(),
        seed=0,
        global_batch=batch_size,
        mine=mine,
        patch_size=patch_size,
        allowed=0,
    )
    requests = Steps(SamplePlan(len(images), seed=0), batch_size, mine)
    requests.range = steps
    loader: DataLoader[Any] = DataLoader(
        batches,
        sampler=requests,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=begin_worker,
    )
    with closing(Work(loader).items()) as items:
        for item in items:
            if not isinstance(item, Batch):
                raise DataError(item.reason)
            yield item


def _transform(config: CropConfig, view: int) -> Any:
    """The policy's transforms of one view, to a uint8 tensor."""
    from torchvision.transforms import v2

    policy, kind = POLICIES[config.policy], min(view, N_GLOBAL)
    size, scale = _shape(config, kind)
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    blur = v2.GaussianBlur(2 * BLUR_RADIUS + 1, BLUR_SIGMA)
    turns = [v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]
    cubic = v2.InterpolationMode.BICUBIC
    steps = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=cubic, antialias=True),
        v2.RandomHorizontalFlip(policy.hflip),
        v2.RandomVerticalFlip(policy.vflip),
        *([v2.RandomChoice(turns)] if policy.rotate else []),
        v2.RandomApply([jitter], policy.jitter),
        v2.RandomGrayscale(policy.grayscale),
        v2.RandomApply([blur], policy.blur[kind]),
        v2.RandomSolarize(128, policy.solarise[kind]),
        v2.PILToTensor(),  # leaves tensors alone
    ]
    squeeze = [] if config.resize is None else [v2.Resize((config.resize,) * 2, interpolation=cubic)]
    return v2.Compose([*squeeze, *steps])


def _shape(config: CropConfig, kind: int) -> tuple[int, Scale]:
    if kind < N_GLOBAL:
        return config.global_size, config.global_scale
    return config.local_size, config.local_scale
