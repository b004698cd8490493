"""What cells cost, before they are run: multiplications counted, a speed assumed, or measured where cells are finished.

A token's pass through a trunk of P parameters is 2 P operations forward, 2 P for the gradients of its activations and 2 P
for those of the weights, which adapters hardly have. Attention, heads and decoders are left out: an estimate.
"""

from statistics import median
from typing import Any, NamedTuple

from essa_dist.engine.config import JobConfig, RunConfig
from essa_dist.engine.schedules import in_steps
from essa_dist.finetune.config import FinetuneConfig
from essa_dist.reproduce.cells import Sizes

PARAMETERS = {"tiny": 5.5e6, "small": 22e6, "base": 86e6, "large": 304e6, "giant": 1136e6}
LETTERS = {"vitt": "tiny", "vits": "small", "vitb": "base", "vitl": "large", "vitg": "giant"}


class Work(NamedTuple):
    steps: int
    images: int
    """Over all updates."""
    tflop: float
    """Training, and judging validation and test images."""


def work_of(config: Any, sizes: Sizes, train: int) -> Work:
    """Of a run over ``train`` images. ``config`` is a RunConfig or a FinetuneConfig."""
    assert isinstance(config, JobConfig)
    epoch = max(1, train // config.batch_size)
    steps = in_steps(config.duration, epoch)
    images = steps * config.batch_size
    parameters, patch = _trunk(config.backbone.name)
    kind = config.adapter.model_dump()["kind"]
    passes = {"full": 6, "frozen": 2}.get(kind, 4)
    judged = 0
    if isinstance(config, RunConfig):
        crops = config.data.crops
        teacher = 2 * _tokens(crops.global_size, patch)
        tokens = teacher + crops.n_local * _tokens(crops.local_size, patch)
        an_image = (passes * tokens + 2 * teacher) * parameters
        a_look = 0.0
    else:
        assert isinstance(config, FinetuneConfig)
        tokens = _tokens(config.data.image_size, patch)
        an_image, a_look = passes * tokens * parameters, 2 * tokens * parameters
        every = config.validation.every
        judged = sizes.test + (sizes.val * -(-steps // max(1, in_steps(every, epoch))) if every else 0)
    return Work(steps, images, (images * an_image + judged * a_look) / 1e12)


def _tokens(size: int, patch: int) -> int:
    return (size // patch) ** 2 + 1


def _trunk(name: str) -> tuple[float, int]:
    """Parameters and patch size, by the name."""
    size = next((size for size in PARAMETERS if size in name), None)
    size = size or next((size for letter, size in LETTERS.items() if letter in name), "base")
    return PARAMETERS[size], 14 if "14" in name else 16


class Speed(NamedTuple):
    """How long work takes."""

    tflops: float
    start_s: float
    measured: int
    """Finished cells it was measured on; 0: assumed."""

    def seconds(self, work: Work) -> float:
        """For one cell on one device."""
        return self.start_s + work.tflop / self.tflops


def speed(assumed: float, start_s: float, finished: list[tuple[Work, float]]) -> Speed:
    """The median of what finished cells did in their seconds, less the start."""
    rates = [work.tflop / (seconds - start_s) for work, seconds in finished if seconds > 1.2 * start_s]
    if not rates:
        return Speed(assumed, start_s, 0)
    return Speed(median(rates), start_s, len(rates))
