"""A run folder is read as far as it goes, and what can't be read is said."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from essa_dist.errors import UsageError
from essa_dist.report.record import pair_results, read_record

WriteRun = Callable[..., Path]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run folder .*give the out= of a run"):
        read_record(tmp_path)


def test_a_cut_last_line_is_left_out_and_said(write_run: WriteRun, fake: SimpleNamespace) -> None:
    run = write_run(metrics=fake.metrics(7))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    record = read_record(run)
    assert [row["step"] for row in record.metrics] == list(range(7))
    assert record.notes == ("metrics.jsonl: 1 incomplete line(s) left out",)


def test_a_step_written_again_after_a_resume_counts_once_with_its_later_value(write_run: WriteRun) -> None:
    record = read_record(write_run(metrics=[{"step": 1, "loss": 9.0}, {"step": 2}, {"step": 1, "loss": 3.0}]))
    assert [(row["step"], row.get("loss")) for row in record.metrics] == [(1, 3.0), (2, None)]


def test_a_validation_that_is_made_up_for_joins_the_row_of_its_step(write_run: WriteRun) -> None:
    rows = [{"step": 3, "loss": 0.5}, {"step": 3, "val_loss": 0.4}, {"step": 4, "loss": 0.3}]
    assert read_record(write_run(metrics=rows)).metrics == [
        {"step": 3, "loss": 0.5, "val_loss": 0.4},
        {"step": 4, "loss": 0.3},
    ]


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff\xfe"])
def test_a_damaged_summary_is_said_and_not_fatal(
    write_run: WriteRun, fake: SimpleNamespace, text: str
) -> None:
    run = write_run(config=fake.config)
    (run / "summary.json").write_bytes(text.encode("latin-1"))
    record = read_record(run)
    assert record.summary == {}
    assert "summary.json" in record.notes[0]


def test_pairs_come_from_the_summary_where_it_has_them(write_run: WriteRun, fake: SimpleNamespace) -> None:
    pairs = read_record(write_run(summary=fake.summary())).pairs
    assert [pair.title for pair in pairs] == ["k-NN at 160 px", "k-NN at 224 px", "linear probe at 224 px"]


def test_evaluations_are_paired_by_protocol_size_and_crop(tmp_path: Path, fake: SimpleNamespace) -> None:
    results = [
        fake.result("knn", 224, 0.7, model="vit"),
        fake.result("knn", 224, 0.8, model=str(tmp_path)),
        fake.result("knn", 160, 0.6, model="vit"),  # has no partner
        fake.result("linear", 224, 0.75, model="vit", crop=0.65),
        fake.result("linear", 224, 0.85, model=str(tmp_path / "export"), crop=0.65),
        fake.result("linear", 224, 0.1, model="vit"),  # another crop: no partner
    ]
    pairs = pair_results(results, tmp_path)
    assert [(p.title, p.before["accuracy"], p.after["accuracy"]) for p in pairs] == [
        ("k-NN at 224 px", 0.7, 0.8),
        ("linear probe at 224 px, crop 0.65", 0.75, 0.85),
    ]


def test_a_file_name_says_which_side_an_evaluation_is(write_run: WriteRun, fake: SimpleNamespace) -> None:
    sides = {"knn_before": fake.result("knn", 224, 0.7), "knn_after": fake.result("knn", 224, 0.8)}
    (pair,) = read_record(write_run(evaluation=sides)).pairs
    assert (pair.before["accuracy"], pair.after["accuracy"]) == (0.7, 0.8)


def test_the_frozen_model_is_named_with_its_weights_file(write_run: WriteRun) -> None:
    backbone = {"name": "vit_tiny_patch16_224", "weights": "w.safetensors"}
    assert (
        read_record(write_run(config={"backbone": backbone})).base_name
        == "vit_tiny_patch16_224@w.safetensors"
    )
