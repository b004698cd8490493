"""What differs between the kinds of runs that are planned: the parts of a step, and what its images are."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from essa_dist.adapters import label
from essa_dist.backbones import Backbone
from essa_dist.data.batch import Samples
from essa_dist.data.manifest import MANIFEST_FILE
from essa_dist.data.remote.urls import is_url
from essa_dist.data.shards import place_of
from essa_dist.engine.config import JobConfig, RunConfig
from essa_dist.objectives import Objective

C = TypeVar("C", bound=JobConfig)


class Subject(ABC, Generic[C]):
    """A run, as :mod:`.fake` makes a step of it. Nothing of its data is needed."""

    def __init__(self, run: C) -> None:
        self.run = run

    @abstractmethod
    def trunk(self) -> Backbone:
        """With the adapter in it, on the meta device. Raises UsageError as the run would."""

    @abstractmethod
    def objective(self, backbone: Backbone, dtype: torch.dtype) -> Objective:
        """What is trained; called under a FakeTensorMode."""

    @abstractmethod
    def batch(self, images: int, backbone: Backbone, dtype: torch.dtype) -> Samples:
        """A normalised batch of the shapes that the run trains on."""

    @abstractmethod
    def masked(self, patch_size: int) -> float:
        """Masked patches of an image, in the mean."""

    @abstractmethod
    def samples(self, images: int | None) -> int | None:
        """Of an epoch, where the training set has ``images``, or as many as are seen on this machine; None: nobody knows."""

    @property
    @abstractmethod
    def crops(self) -> str:
        """What is seen of an image, as ``2 x 224 + 8 x 98 px``."""

    def surveys(self, objective: Objective) -> bool:
        """Whether several micro-batches need a pass before them; see ``objectives.accumulation``."""
        return False

    def bring(self) -> None:
        """Import what a run has in memory from its start on and a plan needs not: on a CPU it counts."""

    def look(self, objective: Objective, backbone: Backbone, dtype: torch.dtype) -> None:
        """What is computed between steps and may take more memory than they."""

    def facts(self) -> dict[str, Any]:
        """What a plan or a measurement is of."""
        run = self.run
        return {
            "model": run.backbone.name,
            "adapter": label(run.adapter),
            "precision": run.precision,
            "batch_size": run.batch_size,
            "accumulate": run.accumulate,
            "crops": self.crops,
        }


def subject_of(run: JobConfig, classes: int | None = None) -> Subject[Any]:
    """``classes``: of a labelled task (None: as the manifest of its training set says). Raises UsageError where they are
    not known."""
    # Either brings modules that a process of the other's run doesn't have in memory.
    if isinstance(run, RunConfig):
        from essa_dist.planning.adaptation import Adaptation

        return Adaptation(run)
    from essa_dist.finetune import FinetuneConfig
    from essa_dist.planning.finetuning import Finetuning

    assert isinstance(run, FinetuneConfig)
    return Finetuning(run, classes)


def packed_here(ref: str) -> Path | None:
    """The folder of a packed set that lies on this machine."""
    if not ref or is_url(ref):
        return None
    folder = Path(place_of(ref))
    return folder if (folder / MANIFEST_FILE).is_file() else None


def without_values(adapter: Any) -> Any:
    """``adapter`` with first values that need not be computed of weights, which a meta tensor hasn't."""
    return adapter.model_copy(update={"init": "default"} if "init" in type(adapter).model_fields else {})
