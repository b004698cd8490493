"""The page says what a user must look at, shows the set, and needs nothing but itself."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essa_dist.data.index import NONE
from essa_dist.errors import UsageError
from essa_dist.packing.guards.findings import Duplicates, Examples, Findings, Pair
from essa_dist.packing.report import DataReportConfig, data_report
from essa_dist.packing.report.record import read_packed
from essa_dist.packing.report.sample import SIDE, look, sheet_rows, statistics_rows
from essa_dist.packing.report.sheet import TINTS, overlay
from essa_dist.packing.report.verdict import concerns, verdict


class Page(HTMLParser):
    """Text, tags and table rows of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self._cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data


def page_of(folder: Path, **more: Any) -> Page:
    return Page(Path(data_report(DataReportConfig(packed=str(folder), **more))["html"]).read_text("utf-8"))


@pytest.fixture
def leaky(write_packed: Any, one: Any) -> Path:
    """Everything that a page can tell of, in 27 samples."""
    samples = [one(f"a{i}", label=i % 2, patient=i // 2) for i in range(20)]
    samples += [one(f"b{i}", "test", label=0, patient=9 + i) for i in range(6)] + [
        one("c", "test", patient=40)
    ]
    folder: Path = write_packed(
        samples, label_kind="single", classes=("benign", "malignant"), skipped={"not an image": 4, "blank": 1}
    )
    (folder / "quarantine.csv").write_text(
        "path,reason\n" + "".join(f"x{i}.png,not an image\n" for i in range(4)) + "flat.png,blank\n"
    )
    pair = Pair(a="b1", b="a7", splits=("test", "train"), similarity=0.987, same_patient=False)
    Findings(
        samples=27,
        near=Duplicates(
            across=1, inside=12, by_splits={"test|train": 1, "train|train": 12}, pairs=(pair,), left_off=12
        ),
        flags={"PatientName is filled": Examples(count=5, keys=("a0", "a3"))},
        dropped={"train": 3},
    ).write(folder)
    return folder


def test_the_page_holds_the_numbers_of_the_set(leaky: Path) -> None:
    rows = page_of(leaky).rows
    assert ["benign", "10 (50.0 %)", "6 (85.7 %)", "16"] in rows
    assert ["malignant", "10 (50.0 %)", "0 (0.0 %)", "10"] in rows
    assert ["unlabelled", "0 (0.0 %)", "1 (14.3 %)", "1"] in rows
    assert next(row[:4] for row in rows if row[0] == "test") == ["test", "7", "25.9 %", "7"]
    assert ["not an image", "4", "x0.png, x1.png, x2.png"] in rows
    assert ["PatientName is filled", "5", "a0, a3"] in rows
    assert ["nearly the same", "1", "12", "0", "test and train: 1, train: 12"] in rows
    assert ["b1", "test", "a7", "train", "0.987", "no"] in rows
    assert [
        "Samples of a patient (samples)",
        "1",
        "1",
        "2",
        "2.25",
        "3",
    ] in rows  # patient 9 has a18, a19 and b0


def test_what_must_be_looked_at_stands_on_top(leaky: Path) -> None:
    made = data_report(DataReportConfig(packed=str(leaky)))
    found, page = made["concerns"], Page(Path(made["html"]).read_text("utf-8"))
    assert found == [
        "1 patients are in more than one split: what is learnt of them is tested on them.",
        "1 pairs in two splits show nearly the same picture.",
        "Headers or pixels of the source files may identify patients: PatientName is filled (5).",
        "5 of 32 samples were left out (15.6 %).",
        "Split test has fewer than 10 samples of benign (6), malignant (0).",
        "1 samples of split test have no label.",
    ]
    assert "6 things to look at before training" in page.text
    assert all(sentence in page.text for sentence in found)
    assert "Left out as duplicates: 3 of train." in page.text
    assert page.text.index(found[0]) < page.text.index("What it is", page.text.index(found[0]))


def test_a_set_without_fault_has_nothing_to_look_at(write_packed: Any, one: Any) -> None:
    samples = [one(f"a{i}", patient=i) for i in range(4)] + [
        one(f"b{i}", "test", patient=9 + i) for i in range(3)
    ]
    folder = write_packed(samples)
    Findings(samples=7).write(folder)
    assert concerns(read_packed(folder)) == []
    assert "Nothing to look at" in verdict([])
    assert "Nothing to look at" in page_of(folder).text


def test_unknown_patients_matter_only_where_there_are_two_splits(write_packed: Any, one: Any) -> None:
    alone = write_packed([one("a"), one("b")], name="alone")
    two = write_packed([one("a"), one("b", "test", patient=3)], name="two")
    assert not any("patient" in sentence for sentence in concerns(read_packed(alone)))
    assert "The patient is not known for 1 samples: whether one is in two splits can't be told." in concerns(
        read_packed(two)
    )


def test_the_same_set_gives_the_same_bytes_wherever_it_lies(leaky: Path, tmp_path: Path) -> None:
    first = Path(data_report(DataReportConfig(packed=str(leaky)))["html"]).read_bytes()
    moved = leaky.rename(tmp_path / "elsewhere")
    second = data_report(DataReportConfig(packed=str(moved), out=str(tmp_path / "deep" / "page.html")))
    assert Path(second["html"]) == tmp_path / "deep" / "page.html"
    assert Path(second["html"]).read_bytes() == first


def test_the_page_is_one_file_that_asks_nothing_of_the_network(leaky: Path) -> None:
    before = {path.name for path in leaky.iterdir()}
    page = page_of(leaky)
    assert {path.name for path in leaky.iterdir()} - before == {"report.html"}
    given = [
        v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "srcset")
    ]
    assert len(page.tags) > 100
    assert all(value and value.startswith(("data:image/png;base64,", "#")) for value in given)
    assert not re.search(r"url\(|@import|https?://", (leaky / "report.html").read_text("utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4  # contact sheet, classes, measures, pairs
    assert all((image["alt"] or "").strip() for image in images)


HOSTILE = "<img src=x onerror=alert(1)>{{ 7*7 }}$\\frac"


def test_hostile_names_are_shown_and_never_run(write_packed: Any, one: Any) -> None:
    folder = write_packed(
        [one("k", label=0), one("l", label=1)],
        label_kind="single", classes=(HOSTILE, "b"), source=HOSTILE, skipped={HOSTILE: 1},
    )  # fmt: skip
    flag = {HOSTILE: Examples(count=1, keys=(HOSTILE,))}
    Findings(samples=2, flags=flag).write(folder)
    page = page_of(folder)
    assert HOSTILE in "".join(page.words)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "49" not in page.text.split()


def test_a_set_whose_tars_are_gone_or_broken_still_has_its_numbers(leaky: Path) -> None:
    (leaky / "test.tar").unlink()
    tar = leaky / "train.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)
    page = page_of(leaky)
    assert "no image of the set can be read here" in page.text
    assert ["benign", "10 (50.0 %)", "6 (85.7 %)", "16"] in page.rows


def test_a_set_that_was_not_examined_says_so(write_packed: Any, one: Any) -> None:
    page = page_of(write_packed([one("a"), one("b")]))
    assert "have not been examined" in page.text
    assert "Missing: findings.json" in page.text


def test_multi_label_prevalence_and_unknown_labels_are_told(write_packed: Any, one: Any) -> None:
    matrix = [(1, 1, 0), (1, NONE, 0), (0, NONE, 0), (0, 1, 0)]
    samples = [one(f"a{i}", labels=labels) for i, labels in enumerate(matrix)]
    page = page_of(write_packed(samples, label_kind="multi", classes=("p", "q", "r")))
    assert ["q", "2 (50.0 %)", "2"] in page.rows
    assert ["q", "2", "0", "2"] in page.rows
    assert ["p", "2", "2", "0"] in page.rows
    assert "fewer than 10 samples of p (2), q (2), r (0)" in page.text


def test_what_is_no_packed_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        data_report(DataReportConfig(packed=str(tmp_path / "nothing")))


def test_sixteen_bits_are_shown_in_the_samples_own_window(write_packed: Any, one: Any) -> None:
    pixels = np.repeat(np.repeat(np.array([[1000, 1200], [1400, 5000]], np.uint16), 16, 0), 24, 1)
    folder = write_packed([one("ct", pixels=pixels, window=(1000, 1400), slope=2.0, intercept=-2048.0)])
    shown = look(read_packed(folder), 0)
    assert shown is not None
    assert shown.pixels.shape == (round(SIDE * 32 / 48), SIDE, 3)
    corners = shown.pixels[[3, 3, -3, -3], [3, -3, 3, -3], 0].tolist()
    assert corners == [0, 128, 255, 255]
    assert ["Window, lower end (real value)", *["-48"] * 5] in page_of(folder).rows
    assert ["Window, upper end (real value)", *["752"] * 5] in page_of(folder).rows


def test_the_sheet_shows_every_class_of_every_split_before_a_second_one(write_packed: Any, one: Any) -> None:
    samples = [one(f"a{i}", label=(0, 0, 0, 2)[i % 4]) for i in range(12)]
    samples += [one(f"b{i}", "val", label=(0, 1)[i % 2]) for i in range(4)]
    packed = read_packed(write_packed(samples, label_kind="single", classes=("x", "y", "z")))
    assert sheet_rows(packed, 4) == [0, 3, 12, 13]  # x of train, z of train, x and y of val
    assert sheet_rows(packed, 6) == [0, 1, 3, 12, 13, 14]
    assert sheet_rows(packed, 99) == list(range(16))
    assert len(sheet_rows(packed, 2)) == 2


def test_a_sample_of_several_classes_is_shown_once(write_packed: Any, one: Any) -> None:
    samples = [one(f"a{i}", labels=(1, int(i < 2))) for i in range(5)]
    packed = read_packed(write_packed(samples, label_kind="multi", classes=("p", "q")))
    assert sheet_rows(packed, 3) == [0, 1, 2]


def test_statistics_are_of_samples_spread_over_the_whole_set(write_packed: Any, one: Any) -> None:
    packed = read_packed(write_packed([one(f"a{i}") for i in range(30)]))
    assert statistics_rows(packed).tolist() == list(range(30))
    object.__setattr__(packed.index, "height", np.full(30, 100_000))
    rows = statistics_rows(packed)
    assert len(rows) == 16
    assert set(np.diff(rows).tolist()) <= {1, 2}
    assert (rows[0], rows[-1]) in {(0, 28), (0, 29), (1, 29)}


def test_masks_are_outlined_and_nothing_outside_them_changes(write_packed: Any, one: Any) -> None:
    pixels = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 15:30], mask[25:35, 40:55] = 1, 2
    mixed = overlay(pixels, mask)
    assert (mixed[mask == 0] == 90).all()
    assert mixed[10, 20].tolist() == list(TINTS[0])
    assert mixed[30, 54].tolist() == list(TINTS[1])
    assert 0 < np.abs(mixed[15, 20].astype(int) - 90).max() < 60
    folder = write_packed([one("m", pixels=pixels, mask=mask)], mask_classes=("background", "a", "b"))
    shown = look(read_packed(folder), 0)
    assert shown is not None
    assert shown.mask is not None
    assert shown.mask.shape == shown.pixels.shape[:2]
    assert set(np.unique(shown.mask)) == {0, 1, 2}
    assert "with masks outlined" in page_of(folder).text
