"""What can't be learnt is refused before anything is loaded or written, with the way out in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.errors import EssaError
from tests.finetune.conftest import Tuned

Tune = Callable[..., Tuned]


@pytest.mark.parametrize(
    ("packed", "overrides", "words"),
    [
        ("cells", ('data.train=""',), "data.train is not set"),
        ("cells", ("data.train=/nowhere",), "no such folder: /nowhere"),
        ("cells", ("data.image_size=33",), "not a multiple of the patch size 16 of test_vit: use 32 or 48"),
        ("cells", ("task=binary",), "task binary needs 2 classes, the labels have 3"),
        ("cells", ("task=multilabel",), "has one class for an image, the task needs several"),
        ("cells", ("task=segmentation",), "has no masks"),
        ("cells", ("task=ordinal",), "name them from the lowest to the highest"),
        ("cells", ("task.target_metric=dice",), "'dice' is no metric of multiclass"),
        ("cells", ("data.evaluation=native",), "data.evaluation=native is for segmentation"),
        ("nuclei", ("mixing.mixup=0.5",), "don't go with task segmentation"),
        ("cells", ("keep_adapter=true",), "name it, as model=RUN"),
        ("cells", ("model=no/where",), "model=no/where is not there"),
        ("cells", ("keep_adapter=true", "model=test_vit"), "model=test_vit is no run"),
        ("cells", ("accumulate=4",), "batch_size=6 is not a multiple of accumulate=4"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    packed: str,
    overrides: tuple[str, ...],
    words: str,
    tune: Tune,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    with pytest.raises(EssaError) as caught:
        tune("run", request.getfixturevalue(packed), *overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_labels_that_no_metric_can_be_had_of_are_refused_before_training(
    make_set: Callable[..., str], tune: Tune, tmp_path: Path
) -> None:
    one = make_set(train={"red": 4}, val={"red": 2})
    with pytest.raises(EssaError, match="has one class only"):
        tune("run", one)
    lopsided = make_set(train={"red": 4, "blue": 4}, val={"red": 2}, test={"blue": 2})
    with pytest.raises(EssaError, match=r"validation: auroc can't be had from these 2 images"):
        tune("run", lopsided)
    assert not (tmp_path / "run").exists()
    tuned = tune("run", lopsided, "task.target_metric=accuracy", "duration=1", "validation.every=1")
    assert "auroc" not in tuned.result["test"]["values"]


def test_durations_that_outlast_the_run_are_told(
    cells: str, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    tune(
        "run", cells, "duration=1", "validation.every=null", "schedule.head_warmup=3ep", "test.enabled=false"
    )
    assert "schedule.head_warmup=3ep takes the whole run of 1 steps: nothing but the head" in caplog.text
