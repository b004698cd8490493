"""What every task of whole images promises, and which task labels are for."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from essa_dist.data.manifest import Manifest
from essa_dist.errors import UsageError
from essa_dist.settings import Config, load
from essa_dist.tasks import (
    TASKS,
    ClassCounts,
    Task,
    TaskConfig,
    build_task,
    label,
    make_task,
    resolve_task,
)
from essa_dist.tasks.binary import BinaryConfig
from essa_dist.tasks.multiclass import MulticlassConfig
from essa_dist.tasks.multilabel import MultilabelConfig
from essa_dist.tasks.ordinal import OrdinalConfig

M = 48


class Settings(Config):
    task: TaskConfig = MulticlassConfig()
    """The task."""


def config(*overrides: str) -> Any:
    return load(Settings, overrides=list(overrides)).task


def manifest(kind: str, classes: tuple[str, ...], masks: tuple[str, ...] = ()) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "set",
            "label_kind": kind,
            "classes": classes,
            "mask_classes": masks,
            "splits": ("train",),
            "shards": (),
            "counts": {},
            "samples": {},
            "bits": {},
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "source": "",
            "licence": "",
            "attribution": "",
            "skipped": {},
        }
    )


GRADES = ("10", "2", "0", "7")
CASES = [
    (MulticlassConfig(), ("a", "b", "c")),
    (MulticlassConfig(class_weights="balanced", focal_gamma=2), ("0", "1", "2")),
    (BinaryConfig(), ("no", "yes")),
    (BinaryConfig(positive="ill", pos_weight="balanced", focal_gamma=1), ("ill", "well")),
    (MultilabelConfig(), ("mass", "nodule", "cyst", "scar", "clip")),
    (MultilabelConfig(pos_weight="balanced", focal_gamma=2), ("mass", "nodule")),
    (OrdinalConfig(), GRADES),
    (
        OrdinalConfig(order=("mild", "severe", "deadly"), class_weights=(1, 2, 4)),
        ("deadly", "mild", "severe"),
    ),
]
IDS = [f"{label(settings)}-{len(classes)}-{n}" for n, (settings, classes) in enumerate(CASES)]


def count_classes(targets: Tensor, n_classes: int) -> ClassCounts:
    """Of class numbers [n], or of flags [n, K] of 0, 1 and -1 (not known)."""
    flags = targets if targets.ndim == 2 else torch.nn.functional.one_hot(targets, n_classes)
    return ClassCounts(tuple((flags > 0).sum(0).tolist()), tuple((flags >= 0).sum(0).tolist()))


def targets_of(settings: Config, classes: tuple[str, ...]) -> Tensor:
    random = torch.Generator().manual_seed(0)
    if label(settings) == "multilabel":
        return torch.randint(-1, 2, (M, len(classes)), generator=random).float()
    return torch.randint(len(classes), (M,), generator=random)


def made(settings: Config, classes: tuple[str, ...]) -> tuple[Task, Tensor, Tensor]:
    targets = targets_of(settings, classes)
    task = make_task(settings, classes, count_classes(targets, len(classes)))
    return task, torch.randn(M, task.n_outputs, generator=torch.Generator().manual_seed(1)), targets


@pytest.mark.parametrize(("settings", "classes"), CASES, ids=IDS)
def test_equal_micro_batches_average_to_the_loss_of_the_batch(
    settings: Config, classes: tuple[str, ...]
) -> None:
    task, logits, targets = made(settings, classes)
    parts = [task.loss(*part) for part in zip(logits.chunk(6), targets.chunk(6), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), task.loss(logits, targets))


@pytest.mark.parametrize(("settings", "classes"), CASES, ids=IDS)
def test_hard_and_soft_targets_of_the_same_meaning_have_the_same_loss(
    settings: Config, classes: tuple[str, ...]
) -> None:
    task, logits, targets = made(settings, classes)
    soft = targets if targets.ndim == 2 else torch.nn.functional.one_hot(targets, len(classes)).float()
    torch.testing.assert_close(task.loss(logits, soft), task.loss(logits, targets))


@pytest.mark.parametrize(("settings", "classes"), CASES, ids=IDS)
def test_probabilities_are_fp32_with_a_column_for_each_class(
    settings: Config, classes: tuple[str, ...]
) -> None:
    task, logits, _ = made(settings, classes)
    for dtype in (torch.float32, torch.bfloat16):
        p = task.probabilities((30 * logits).to(dtype))
        assert p.dtype == torch.float32
        assert p.shape == (M, len(classes))
        assert ((p >= 0) & (p <= 1)).all()
        if task.kind != "multilabel":
            torch.testing.assert_close(p.sum(dim=1), torch.ones(M))
        predicted = task.predictions(p)
        assert predicted.dtype == torch.int64
        assert int(predicted.max()) < (2 if task.kind == "multilabel" else len(classes))


@pytest.mark.parametrize(("settings", "classes"), CASES, ids=IDS)
def test_scores_have_every_metric_that_can_be_the_target(settings: Config, classes: tuple[str, ...]) -> None:
    task, logits, targets = made(settings, classes)
    scores = task.score(task.probabilities(logits), targets, resamples=20)
    allowed = set(get_args(type(settings).model_fields["target_metric"].annotation))
    graded = getattr(task, "grades", None) is not None or "quadratic_kappa" not in allowed
    assert scores.values.keys() == (allowed if graded else allowed - {"quadratic_kappa", "mae"})
    assert scores.intervals.keys() == scores.values.keys()
    assert scores.value(task.target_metric) == scores.values[task.target_metric]
    assert scores.n == M


@pytest.mark.parametrize(("settings", "classes"), CASES, ids=IDS)
def test_following_the_gradient_makes_predictions_right(settings: Config, classes: tuple[str, ...]) -> None:
    task, _, targets = made(settings, classes)
    logits = torch.zeros(M, task.n_outputs, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(logits, targets).backward()
        optimizer.step()
    predicted = task.predictions(task.probabilities(logits.detach()))
    assert (predicted == targets)[targets >= 0].all()
    if task.kind != "multilabel":  # labels there are drawn apart for each column
        assert task.score(task.probabilities(logits.detach()), targets).value(task.target_metric) == 1


@pytest.mark.parametrize("weights", ["none", "balanced", "[1, 5, 2]"])
def test_class_weights_have_mean_one_over_the_training_images(weights: str) -> None:
    targets = torch.tensor([0] * 12 + [1] * 3 + [2] * 1)
    task = make_task(
        config("task=multiclass", f"task.class_weights={weights}"), tuple("abc"), count_classes(targets, 3)
    )
    assert task.loss(torch.zeros(16, 3), targets).item() == pytest.approx(np.log(3))


def test_balanced_classes_count_alike_in_sum() -> None:
    targets = torch.tensor([0] * 12 + [1] * 3 + [2] * 1)
    task = make_task(MulticlassConfig(class_weights="balanced"), tuple("abcd"), count_classes(targets, 4))
    sums = [
        len(part) * task.loss(torch.zeros(len(part), 4), part).item()
        for part in (targets[:12], targets[12:15], targets[15:])
    ]
    assert sums == pytest.approx([sums[0]] * 3)


@pytest.mark.parametrize("weight", ["balanced", 4.0, (4.0, 0.5)])
def test_weights_of_yes_and_no_have_mean_one_over_the_training_images(weight: Any) -> None:
    targets = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [0, 1]])
    task = make_task(MultilabelConfig(pos_weight=weight), ("a", "b"), count_classes(targets, 2))
    assert task.loss(torch.zeros(6, 2), targets).item() == pytest.approx(np.log(2))
    for k, (known_yes, known_no) in enumerate([(1, 5), (3, 3)]):
        column = torch.full((2, 2), -1.0)
        column[:, k] = torch.tensor([1, 0])
        yes, no = (task.loss(torch.zeros(1, 2), row[None]).item() for row in column)
        ratio = (
            known_no / known_yes
            if weight == "balanced"
            else weight[k]
            if isinstance(weight, tuple)
            else weight
        )
        assert yes / no == pytest.approx(ratio)


def test_a_class_without_training_images_makes_no_weight_infinite() -> None:
    task = make_task(
        MulticlassConfig(class_weights="balanced"),
        tuple("abc"),
        ClassCounts((5, 0, 1), (6,) * 3),
    )
    assert task.loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 1])).isfinite()
    never = make_task(MultilabelConfig(pos_weight="balanced"), tuple("ab"), ClassCounts((0, 6), (6, 6)))
    assert never.loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(np.log(2))


def test_a_task_that_only_judges_needs_no_counts() -> None:
    task = make_task(MulticlassConfig(class_weights="balanced"), tuple("ab"), None)
    assert task.loss(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(np.log(2))


def test_positive_names_the_class_that_sensitivity_speaks_of() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    ill, well = (make_task(BinaryConfig(positive=name), ("ill", "well"), None) for name in ("ill", "well"))
    assert ill.score(p, targets).values["sensitivity"] == pytest.approx(2 / 3)
    assert well.score(p, targets).values["sensitivity"] == 1
    assert ill.score(p, targets).value("auroc") == pytest.approx(well.score(p, targets).value("auroc"))
    assert torch.equal(ill.predictions(p), well.predictions(p))
    torch.testing.assert_close(
        ill.probabilities(torch.tensor([[2.0]])), well.probabilities(torch.tensor([[-2.0]]))
    )


def test_grades_are_ordered_by_number_or_by_name_never_by_spelling() -> None:
    by_number = make_task(OrdinalConfig(), GRADES, None)
    assert by_number.probabilities(torch.tensor([[-9.0, 0, 0]])).argmax() == GRADES.index("0")
    assert by_number.probabilities(torch.tensor([[9.0, 9, 9]])).argmax() == GRADES.index("10")
    with pytest.raises(UsageError, match=r"task.order=\[mild, none, severe\]"):
        make_task(OrdinalConfig(), ("mild", "none", "severe"), None)
    with pytest.raises(UsageError, match="it must name each class once: mild, none"):
        make_task(OrdinalConfig(order=("none", "milld")), ("mild", "none"), None)


def test_ordinal_predicts_the_median_grade() -> None:
    task = make_task(OrdinalConfig(), ("0", "1", "2"), None)
    assert task.predictions(torch.tensor([[0.4, 0.25, 0.35], [0.51, 0.1, 0.39]])).tolist() == [1, 0]


def test_kappa_of_a_multiclass_task_needs_an_order() -> None:
    wanted = MulticlassConfig(target_metric="quadratic_kappa")
    with pytest.raises(UsageError, match="needs classes that are grades"):
        make_task(wanted, ("mild", "none"), None)
    ordered = MulticlassConfig(target_metric="quadratic_kappa", order=("none", "mild"))
    assert make_task(ordered, ("mild", "none"), None).target_metric == "quadratic_kappa"


@pytest.mark.parametrize(
    ("of", "kind", "metric"),
    [
        (manifest("single", ("a", "b")), "binary", "auroc"),
        (manifest("single", ("a", "b", "c")), "multiclass", "balanced_accuracy"),
        (manifest("multi", ("a",)), "multilabel", "auroc"),
        (manifest("none", (), ("background", "nucleus")), "segmentation", "dice"),
    ],
)
def test_auto_is_what_the_labels_are_for(of: Manifest, kind: str, metric: str) -> None:
    task = build_task(config("task=auto"), of, None)
    assert (task.kind, task.target_metric) == (kind, metric)
    assert label(resolve_task(config("task=auto"), of)) == kind


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (manifest("none", ()), "has no labels"),
        (manifest("single", ("a",)), "one class only"),
        (manifest("single", ("a", "b"), ("background", "cell")), "both class labels and masks"),
    ],
)
def test_auto_says_why_there_is_no_task_for_the_labels(of: Manifest, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_task(config("task=auto"), of, None)


def test_auto_takes_a_target_metric_that_the_task_has_and_lists_them_otherwise() -> None:
    of = manifest("single", ("a", "b", "c"))
    assert (
        build_task(config("task.kind=auto", "task.target_metric=f1_macro"), of, None).target_metric
        == "f1_macro"
    )
    with pytest.raises(
        UsageError, match=r"no metric of multiclass.*allowed: accuracy \| balanced.*did you mean auroc"
    ):
        build_task(config("task.kind=auto", "task.target_metric=aurok"), of, None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=multilabel", "task.target_metric=quadratic_kapa"], "allowed: auroc | auprc | f1_macro"),
        (["task=multiclas"], "did you mean multiclass?"),
        (["task=binary", "task.order=[a,b]"], "order belongs to task.kind="),
        (["task=multiclass", "task.class_weights=balance"], "task.class_weights: 'balance' is not allowed"),
        (["task=multilabel", "task.pos_weight=-1"], "task.pos_weight: -1 is not allowed"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_allowed(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(*overrides)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "classes", "words"),
    [
        (BinaryConfig(), ("a", "b", "c"), "needs 2 classes, the labels have 3"),
        (BinaryConfig(positive="c"), ("a", "b"), "task.positive='c' is none of the classes: a, b"),
        (MulticlassConfig(), ("a",), "needs at least 2 classes"),
        (MulticlassConfig(class_weights=(1, 2)), ("a", "b", "c"), "2 numbers for 3 classes"),
        (MultilabelConfig(), (), "at least 1 label"),
        (MultilabelConfig(pos_weight=(1, 2)), ("a", "b", "c"), "2 numbers for 3 classes"),
    ],
)
def test_settings_that_do_not_fit_the_classes_are_refused(
    settings: Config, classes: tuple[str, ...], words: str
) -> None:
    counts = ClassCounts((3,) * len(classes), (9,) * len(classes))
    with pytest.raises(UsageError, match=words):
        make_task(settings, classes, counts)


def test_every_task_is_known_by_its_kind() -> None:
    for kind, (settings, task) in TASKS.items():
        assert task.kind == kind == label(settings())
