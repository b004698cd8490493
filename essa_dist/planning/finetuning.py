"""A run of ``essa finetune``, to be planned."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from essa_dist.backbones import Backbone
from essa_dist.backbones.build import ALIASES, build_architecture
from essa_dist.data.batch import check_channels
from essa_dist.data.labelled.batch import LabelledBatch
from essa_dist.data.labelled.labels import labels_of
from essa_dist.data.labelled.mixing import Mixer
from essa_dist.data.manifest import Manifest, read_manifest
from essa_dist.errors import EssaError, UsageError
from essa_dist.evaluation.features import check_image_size
from essa_dist.finetune import FinetuneConfig
from essa_dist.finetune.head import make_head
from essa_dist.finetune.objective import Predict, Supervised
from essa_dist.finetune.sets import LABELS
from essa_dist.finetune.start import put_adapter, start_model
from essa_dist.objectives import Objective
from essa_dist.planning.subject import Subject, packed_here, without_values
from essa_dist.tasks import TASKS, Task, label, make_task, resolve_task


class Finetuning(Subject[FinetuneConfig]):
    """See :class:`Subject`. ``classes``: of the labels, a mask's background among them; None: those of ``data.train``,
    where it lies on this machine.

    Raises UsageError where task or classes are not known, or don't go together.
    """

    def __init__(self, run: FinetuneConfig, classes: int | None = None) -> None:
        super().__init__(run)
        folder = packed_here(run.data.train)
        self.task = task_of(run, None if folder is None else read_manifest(folder), classes)
        Mixer(run.mixing, task=self.task.kind, n_classes=len(self.task.classes), seed=run.seed)  # or refuses

    def trunk(self) -> Backbone:
        """See :class:`Subject`. Only what is no timm name is read, for its shapes."""
        run = self.run
        check_channels(run.backbone.in_chans)
        name = run.model.partition("@")[0]
        if run.model and (Path(run.model).exists() or not (timm.is_model(name) or name in ALIASES)):
            backbone = start_model(run).to("meta")
        else:
            named = {"name": name} if name else {}
            with torch.device("meta"):
                backbone = build_architecture(run.backbone.model_copy(update=named))
        check_image_size(run.data.image_size, backbone)
        put_adapter(backbone, run.model_copy(update={"adapter": without_values(run.adapter)}))
        return backbone

    def objective(self, backbone: Backbone, dtype: torch.dtype) -> Supervised:
        """See :class:`Subject`."""
        head = make_head(backbone, self.task, self.run)
        return Supervised(backbone, head, self.task, compute_dtype=dtype)

    def batch(self, images: int, backbone: Backbone, dtype: torch.dtype) -> LabelledBatch:
        """See :class:`Subject`."""
        return LabelledBatch(
            images=self._pixels(images, backbone, dtype),
            targets=self._targets(images),
            indices=torch.empty(images, dtype=torch.int64),
            keys=(),
            step=0,
        )

    def _pixels(self, images: int, backbone: Backbone, dtype: torch.dtype) -> Tensor:
        size = self.run.data.image_size
        return torch.empty(images, backbone.in_chans, size, size, dtype=dtype)

    def _targets(self, images: int) -> Tensor:
        """As ``LabelledBatch.targets``, mixed where the run mixes."""
        if self.task.kind == "segmentation":
            return torch.empty(images, *2 * (self.run.data.image_size,), dtype=torch.uint8)
        if self.task.kind == "multilabel" or self.run.mixing.active:
            return torch.empty(images, len(self.task.classes))
        return torch.empty(images, dtype=torch.int64)

    def masked(self, patch_size: int) -> float:
        """See :class:`Subject`."""
        return 0.0

    def samples(self, images: int | None) -> int | None:
        """See :class:`Subject`; ``images`` are labelled ones."""
        data = self.run.data
        if images is not None:
            wanted = images * data.fraction if data.shots is None else data.shots * len(self.task.classes)
            return max(1, min(images, round(wanted)))
        if packed_here(data.train) is None:
            return None
        try:
            opened = data.open()
            return len(data.choose(opened, labels_of(opened, LABELS.get(self.task.kind, "single"))))
        except EssaError:
            return None

    @property
    def crops(self) -> str:
        """See :class:`Subject`."""
        return f"{self.run.data.image_size} px"

    @property
    def _predicts(self) -> bool:
        return self.run.validation.every is not None or self.run.test.enabled

    def bring(self) -> None:
        """See :class:`Subject`. That of the index is 25 MB, those of metrics 100: a score is made, as before a first step."""
        import pyarrow  # noqa: F401

        if not self._predicts:
            return
        n = len(self.task.classes)
        pixels = (2, 2) if self.task.kind == "segmentation" else ()
        targets = torch.zeros((2, n) if self.task.kind == "multilabel" else (2, *pixels), dtype=torch.int64)
        targets[0] = 1
        self.task.score(torch.full((2, n, *pixels), 1 / n), targets)

    def look(self, objective: Objective, backbone: Backbone, dtype: torch.dtype) -> None:
        """Predict a batch of validation or test images, which is as large on each rank whatever is trained on."""
        if self._predicts:
            images = self._pixels(self.run.validation.batch_size, backbone, dtype)
            logits = objective(Predict(images))
            self.task.probabilities(logits)

    def facts(self) -> dict[str, Any]:
        """See :class:`Subject`."""
        by = f" by {label(self.run.decoder)}" if self.task.kind == "segmentation" else ""
        words = f"{self.task.kind} of {len(self.task.classes)} classes{by}"
        return super().facts() | {"task": words} | ({"model": self.run.model} if self.run.model else {})


def task_of(run: FinetuneConfig, manifest: Manifest | None, classes: int | None) -> Task:
    """The task for the classes of ``manifest``, or for so many whose names are numbers; its loss weighs all alike.

    Raises UsageError where ``run`` leaves the task to labels that are not here, or nobody knows the classes.
    """
    settings = run.task if manifest is None else resolve_task(run.task, manifest)
    kind = label(settings)
    if kind == "auto" or (manifest is None and classes is None):
        raise UsageError(
            f"what is learnt decides the head, and the labels that would tell are not here (data.train={run.data.train!r}): "
            f"say task={'|'.join(TASKS) if kind == 'auto' else kind} and classes=N, as many as there are, or name a packed "
            "set of this machine"
        )
    if manifest is not None and classes is None:
        return make_task(
            settings, manifest.mask_classes if kind == "segmentation" else manifest.classes, None
        )
    named = {"order", "positive"} & type(settings).model_fields.keys()
    numbers = [str(number) for number in range(classes or 0)]
    return make_task(settings.model_copy(update=dict.fromkeys(named)), numbers, None)
