"""What the labels mean and how a model of them is judged. One file each; ``TASKS`` lists them all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Field

from essa_dist.data.manifest import Manifest
from essa_dist.errors import UsageError
from essa_dist.nearest import nearest
from essa_dist.settings import Config
from essa_dist.settings.schema import choices
from essa_dist.tasks.binary import Binary, BinaryConfig
from essa_dist.tasks.interface import ClassCounts, Task
from essa_dist.tasks.multiclass import Multiclass, MulticlassConfig
from essa_dist.tasks.multilabel import Multilabel, MultilabelConfig
from essa_dist.tasks.ordinal import Ordinal, OrdinalConfig
from essa_dist.tasks.segmentation import Segmentation, SegmentationConfig

TASKS: dict[str, tuple[type[Config], type[Any]]] = {
    "binary": (BinaryConfig, Binary),
    "multiclass": (MulticlassConfig, Multiclass),
    "multilabel": (MultilabelConfig, Multilabel),
    "ordinal": (OrdinalConfig, Ordinal),
    "segmentation": (SegmentationConfig, Segmentation),
}
"""Name, as in ``task.kind``, to its settings and the class that has the loss, the predictions and the metrics."""


class AutoConfig(Config):
    kind: Literal["auto"] = "auto"
    """By the labels: 2 classes are binary, more multiclass, several labels for an image multilabel, masks segmentation.
    Other settings of a task need its kind."""
    target_metric: str | None = None
    """Chooses the best checkpoint; null: the task's own."""


def _written_short(value: Any) -> Any:
    """``multiclass`` for ``{kind: multiclass}``; without a kind it is auto."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "auto", **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    TaskConfig: TypeAlias = Config
else:
    TaskConfig = Annotated[
        Union[(AutoConfig, *(config for config, _ in TASKS.values()))],
        Field(discriminator="kind"),
        BeforeValidator(_written_short),
    ]
    """One task's Config, chosen by ``kind``; ``task=multiclass`` alone means its defaults."""


def resolve_task(config: TaskConfig, manifest: Manifest) -> TaskConfig:
    """``config``; or for ``auto`` the settings of the task that the labels of ``manifest`` are for.

    Raises UsageError for a set without labels or masks, with both, or with one class; and for a target metric that the
    task does not have.
    """
    if not isinstance(config, AutoConfig):
        return config
    kind = _kind_of(manifest)
    model, _ = TASKS[kind]
    metrics = choices(model.model_fields["target_metric"])
    wanted = config.target_metric
    if wanted is None:
        return model()
    if wanted not in metrics:
        near = nearest(wanted, metrics)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(
            f"task.target_metric: {wanted!r} is no metric of {kind}, which these labels are for; "
            f"allowed: {' | '.join(metrics)}{hint}"
        )
    return model.model_validate({"target_metric": wanted})


def build_task(config: TaskConfig, manifest: Manifest, counts: ClassCounts | None) -> Task:
    """The task of ``config``, resolved, for the classes of ``manifest``; otherwise as ``make_task``."""
    config = resolve_task(config, manifest)
    classes = manifest.mask_classes if label(config) == "segmentation" else manifest.classes
    return make_task(config, classes, counts)


def make_task(config: TaskConfig, classes: Sequence[str], counts: ClassCounts | None) -> Task:
    """The task of ``config``, not ``auto``, for classes of these names.

    ``counts``: of the training images (of segmentation: pixels); None: the model is only judged, so its loss weighs all
    classes alike. Raises UsageError for settings that don't fit the classes.
    """
    if counts is None:
        weighs = {"class_weights", "pos_weight"} & type(config).model_fields.keys()
        config = config.model_copy(update=dict.fromkeys(weighs, "none"))
    task: Task = TASKS[label(config)][1](config, classes, counts)
    return task


def label(config: TaskConfig) -> str:
    """What a task's settings are called: its name in ``TASKS``, or auto."""
    return str(config.model_dump()["kind"])


def _kind_of(manifest: Manifest) -> str:
    labelled, n_classes = manifest.label_kind != "none", len(manifest.classes)
    if labelled and manifest.mask_classes:
        raise UsageError(
            f"{manifest.name} has both class labels and masks: choose task=segmentation, or one for the labels"
        )
    if manifest.mask_classes:
        return "segmentation"
    if not labelled:
        raise UsageError(
            f"{manifest.name} has no labels: pack labelled images (class folders, a table with a label column, or masks)"
        )
    if manifest.label_kind == "multi":
        return "multilabel"
    if n_classes < 2:
        raise UsageError(
            f"{manifest.name} has one class only ({', '.join(manifest.classes)}): a task needs at least 2"
        )
    return "binary" if n_classes == 2 else "multiclass"


__all__ = [
    "TASKS",
    "ClassCounts",
    "Task",
    "TaskConfig",
    "build_task",
    "label",
    "make_task",
    "resolve_task",
]
