"""The page of a sweep shows what there is, and says what there is too little of."""

import csv
import math
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from essa_dist.tuning.record import MEMORY, Objective, Sweep
from essa_dist.tuning.report import write_report
from essa_dist.tuning.report.csv_table import write_csv
from essa_dist.tuning.report.lineage import ancestry
from essa_dist.tuning.report.page import sentence
from tests.tuning.report.trials import KNN, drawn, sweep, trial


@pytest.fixture(autouse=True)
def _without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has tests of its own, and 300 trials take seconds."""
    monkeypatch.setattr("essa_dist.tuning.report.page.write_hparams", lambda sweep, out: out / "tensorboard")


def written(made: Sweep, out: Path) -> tuple[str, set[str]]:
    """The page, and the names of its pictures, each looked at."""
    files = write_report(made, out)
    pictures = {file for file in files if file.suffix == ".png"}
    assert set((out / "report").iterdir()) == {out / "report/report.html", *pictures}
    for file in pictures:
        with Image.open(file) as image:
            assert 400 < image.width < 2100
            assert 200 < image.height < 2000
            assert len(image.convert("RGB").getcolors(2**24) or ()) > 20
    page = (out / "report/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(pictures)
    return unescape(page), {file.stem for file in pictures}


def broken() -> Sweep:
    reasons = {
        "diverged": "loss is <b>nan</b>",
        "out_of_memory": "8 GiB asked of 4",
        "failed": "worker 1 was killed",
    }
    trials = [trial(i, status=status, reason=reason) for i, (status, reason) in enumerate(reasons.items())]
    return sweep([*trials, trial(3, status="waiting")], parameters=("a.b",))


ODD = {
    "none": (sweep([], parameters=("a",)), set()),
    "all broke": (broken(), set()),
    "one": (drawn(1), {"curves", "cost"}),
    "two": (drawn(2), {"curves", "cost", "parallel"}),
    "equal scores": (
        sweep([trial(i, 0.5, params={"a": i}) for i in range(12)]),
        {"curves", "cost", "parallel"},
    ),
    "nan": (
        sweep([trial(i, math.nan if i else 0.5, params={"a": i}) for i in range(3)]),
        {"curves", "parallel"},
    ),
    "nan only": (sweep([trial(i, math.nan, params={"a": i}) for i in range(3)]), set()),
    "one parameter": (
        sweep([trial(i, 0.1 * i, params={"x.lr": 10.0**-i}) for i in range(11)], log=("x.lr",)),
        {"curves", "cost", "parallel"},
    ),
    "words only": (
        sweep([trial(i, 0.1 * i, params={"x": "a very long name " * 3 + str(i % 9)}) for i in range(12)]),
        {"curves", "parallel"},
    ),
    "12 parameters, long names": (
        drawn(
            26, extra=9, kinds=("apla_of_a_very_long_name_indeed", "full", "lora+token_tuning+layernorm+bias")
        ),
        {"curves", "cost", "parallel", "importance"},
    ),
    "300": (drawn(300), {"curves", "cost", "parallel", "importance"}),
}


@pytest.mark.parametrize("case", ODD)
def test_any_sweep_gets_a_page_with_the_pictures_it_has_trials_for(case: str, tmp_path: Path) -> None:
    made, pictures = ODD[case]
    page, found = written(made, tmp_path)
    assert found == pictures
    assert all(one.name in page for one in made.trials)


def test_what_broke_is_listed_with_its_reason_and_its_text_is_no_html(tmp_path: Path) -> None:
    made = broken()
    page, _ = written(made, tmp_path)
    assert all(one.reason in page for one in made.trials)
    assert "out of memory" in page
    assert "<b>nan" not in (tmp_path / "report/report.html").read_text()
    assert "none has a score yet" in page


def test_a_smaller_score_can_be_the_better_one() -> None:
    made = sweep(
        [trial(i, 0.3 + 0.1 * i, params={"a": i}) for i in range(3)], objectives=(Objective(KNN, "min"),)
    )
    assert f"the best is t0000 with {KNN} 0.3 at step 30, by a=0." in sentence(made)


def test_the_table_has_every_trial_in_full_precision(tmp_path: Path) -> None:
    made = drawn(5)
    made.trials[2].status, made.trials[2].reason = "stopped", 'behind, "by far"'
    made.trials[3].parents = ["t0001@10", "t0002@20"]
    write_csv(made, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, one in zip(rows, made.trials, strict=True):
        assert (row["name"], row["status"], row["reason"], row["folder"]) == (
            one.name,
            one.status,
            one.reason,
            one.folder,
        )
        assert float(row["optim.lr"]) == one.params["optim.lr"]
        assert row["adapter.rank"] == str(one.params.get("adapter.rank", ""))
        assert (float(row[KNN]), float(row[MEMORY])) == (one.best[KNN], one.best[MEMORY])
        assert (row["step"], row["starts"], float(row["seconds"])) == ("30", "1", 25.0)
    assert rows[3]["parents"] == "t0001@10 t0002@20"


def test_a_later_report_replaces_the_earlier_one(tmp_path: Path) -> None:
    assert "parallel" in written(drawn(3), tmp_path)[1]
    assert written(broken(), tmp_path)[1] == set()


def test_the_lineage_follows_the_weights_back(tmp_path: Path) -> None:
    made = sweep([trial(i, 0.5 + 0.1 * i, params={"a": i}) for i in range(4)])
    made.trials[3].parents = ["t0002@5", "t0001@20"]
    made.trials[1].parents = ["t0000@10", "t0002@25"]  # the second came after it had handed on
    made.trials[2].parents = ["t0003@5"]
    assert ancestry(made, made.trials[3]) == [("t0001", 20), ("t0000", 10)]
    page, pictures = written(made, tmp_path)
    assert "lineage" in pictures
    assert "t0003, has its weights from t0001@20 from t0000@10." in page


def test_a_lineage_that_names_the_unknown_or_goes_in_a_ring_ends() -> None:
    made = sweep([trial(0, 0.5, parents=["t0001@20"]), trial(1, 0.4, parents=["t0000@20", "t0009@7"])])
    assert ancestry(made, made.trials[0]) == [("t0001", 20), ("t0009", 7)]
