"""The page shows what a run has, names what it lacks with the command that makes it, and needs no network."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from essa_dist.errors import UsageError
from essa_dist.report import ReportConfig, report

WriteRun = Callable[..., Path]


class Page(HTMLParser):
    """Text, tags with attributes, and cells of a page."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make(run: Path, **more: Any) -> tuple[Page, dict[str, Any]]:
    made = report(ReportConfig(run=str(run), **more))
    return Page(made["html"]), made


@pytest.fixture
def recorded_run(write_run: WriteRun, fake: SimpleNamespace) -> Path:
    """A run with every record, but neither images nor checkpoints."""
    return write_run(config=fake.config, metrics=fake.metrics(), summary=fake.summary())


def test_the_numbers_of_the_summary_are_on_the_page(recorded_run: Path) -> None:
    page, _ = make(recorded_run)
    for number in (
        "70.1 % [68.1, 73.1]",
        "81.2 % [79.2, 84.2]",
        "+11.1 points",
        "33 / 44",
        "444,672",
        "1 min 15 s",
        "9.8.7",
    ):
        assert number in page.text, number
    assert "After 120 steps" in page.text


def test_pictures_are_embedded_and_lie_beside_the_page(recorded_run: Path) -> None:
    page, made = make(recorded_run)
    names = {Path(path).name for path in made["pictures"]}
    assert {"bars.png", "losses.png", "schedules.png", "confusion_knn.png", "confusion_linear.png"} <= names
    assert len(page.all("img")) == len(names)
    for path in made["pictures"]:
        assert Path(path).parent == recorded_run / "report"
        assert Image.open(path).width > 300


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(recorded_run: Path) -> None:
    page, made = make(recorded_run)
    resources = [
        v
        for _, attributes in page.tags
        for k, v in attributes.items()
        if k in ("src", "href", "srcset", "data")
    ]
    assert all(value and value.startswith(("data:image/png;base64,", "#")) for value in resources)
    assert not re.search(r"url\(|@import|https?://", Path(made["html"]).read_text())
    assert not page.all("script")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_by_ear(recorded_run: Path) -> None:
    page, _ = make(recorded_run)
    assert page.all("html") == [{"lang": "en"}]
    assert all((image["alt"] or "").strip() for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) > 0
    assert all(cell.get("scope") for cell in page.all("th"))
    assert len(page.all("h1")) == 1
    anchors = {heading["id"] for heading in page.all("h2")}
    assert {f"#{anchor}" for anchor in anchors} == {link["href"] for link in page.all("a")}


@pytest.mark.parametrize("kept", ["config", "metrics", "summary", "evaluation"])
def test_a_run_with_one_part_only_gives_a_page_that_says_what_is_missing(
    kept: str, write_run: WriteRun, fake: SimpleNamespace
) -> None:
    parts = {
        "config": fake.config,
        "metrics": fake.metrics(1),
        "summary": fake.summary(),
        "evaluation": {"knn_before": fake.result("knn", 224, 0.6), "knn_after": fake.result("knn", 224, 0.7)},
    }
    run = write_run(**{kept: parts[kept]})
    page, made = make(run)
    assert made["missing"]
    assert all(what in page.text for what in (" ".join(gap.split()) for gap in made["missing"]))
    shown = "bars.png" in {Path(path).name for path in made["pictures"]}
    assert shown == (kept in ("summary", "evaluation"))
    if not shown:
        assert f"essa evaluate knn model={run} bank=PACKED:train" in page.text
    if kept != "metrics":
        assert f"out={run} resume=true" in page.text


def test_nulls_and_nan_and_a_cut_line_do_not_stop_the_page(write_run: WriteRun) -> None:
    run = write_run(
        metrics=[{"step": 0, "loss": None, "lr": 1e-3}, {"step": 1, "loss": float("nan"), "lr": None}]
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss"')
    page, made = make(run)
    assert "1 incomplete line" in page.text
    assert any("has no loss" in gap for gap in made["missing"])
    assert "schedules.png" in {Path(path).name for path in made["pictures"]}


HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}</pre><script>alert(2)</script>"


def test_hostile_text_is_shown_and_never_run(write_run: WriteRun, fake: SimpleNamespace) -> None:
    summary = fake.summary() | {"model": HOSTILE, "seconds": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    for row in summary["rows"]:
        for side in ("before", "after"):
            row[side] = row[side] | {"classes": [HOSTILE, "b", "c"], "n_bank": HOSTILE}
    config = fake.config | {"backbone": {"name": HOSTILE}, "note": HOSTILE}
    run = write_run(config=config, metrics=fake.metrics(3), summary=summary)
    page, _ = make(run)
    plain, _ = make_plain(run, fake)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert not page.all("script")
    assert all(image["src"] and image["src"].startswith("data:") for image in page.all("img"))
    assert HOSTILE in "".join(page.words)
    assert "49" not in {word.strip() for word in page.words}


def make_plain(run: Path, fake: SimpleNamespace) -> tuple[Page, dict[str, Any]]:
    """The page of the same run with harmless text."""
    (run / "summary.json").write_text(json.dumps(fake.summary() | {"model": "m", "seconds": 1.0}))
    return make(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        report(ReportConfig(run=str(tmp_path / "nothing")))


def test_out_takes_the_page_elsewhere(recorded_run: Path, tmp_path: Path) -> None:
    _, made = make(recorded_run, out=str(tmp_path / "elsewhere"))
    assert Path(made["html"]) == tmp_path / "elsewhere" / "report.html"
    assert not (recorded_run / "report").exists()
