"""Clocks, peaks, tables: what every measurement stands on."""

import time

import pytest
import torch

from essa_dist.bench.clock import Clock, seconds_of, spread
from essa_dist.bench.machine import MemoryPeak, machine
from essa_dist.bench.peaks import BenchPeaksConfig, bench_peaks, measure_peaks
from essa_dist.bench.tables import markdown

CPU = torch.device("cpu")


def test_marks_divide_a_lap_and_a_name_that_comes_twice_is_added_up() -> None:
    clock = Clock(CPU)
    clock.mark("before any lap")
    with clock.lap():
        for _ in range(2):
            time.sleep(0.02)
            clock.mark("long")
            clock.mark("short")
    clock.mark("behind it")
    (lap,) = clock.read()
    assert set(lap) == {"long", "short"}
    assert lap["long"] >= 0.04
    assert lap["short"] < 0.02
    assert clock.read() == []


def test_a_lap_that_ends_in_an_error_is_no_measurement() -> None:
    clock = Clock(CPU)

    def fail() -> None:
        with clock.lap():
            clock.mark("half")
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert clock.read() == []


def test_warm_up_does_not_count() -> None:
    pauses = iter([0.05, 0.05, 0.0, 0.0, 0.0])
    seconds = seconds_of(lambda: time.sleep(next(pauses)), CPU, warmup=2, times=3)
    assert len(seconds) == 3
    assert max(seconds) < 0.05


def test_spread_tells_median_extremes_and_quarters() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0])["q25"] == 2.0


def test_peaks_are_at_least_what_a_small_product_and_copy_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essa_dist.bench.peaks.SIDES", {"cpu": (64, 256)})
    monkeypatch.setattr("essa_dist.bench.peaks.COPIED", {"cpu": 2**20})
    peaks = measure_peaks(CPU, torch.float32)
    a = torch.randn(64, 64)
    seconds = min(seconds_of(lambda: a @ a, CPU, times=20))
    assert peaks.matmul_tflops > 0.5 * 2 * 64**3 / seconds / 1e12
    assert peaks.copy_gbs > 0.1
    result = bench_peaks(BenchPeaksConfig(device="cpu", precision="fp32"))
    assert len(result["table"]) == 2
    assert result["machine"]["gpu"] is None


def test_the_peak_of_some_work_is_what_it_held_at_most() -> None:
    with MemoryPeak(CPU) as peak:
        for _ in range(2):
            big = torch.ones(2**28, dtype=torch.uint8)
            time.sleep(0.05)
            del big
    assert peak.gib == pytest.approx(0.25, abs=0.1)
    with MemoryPeak(CPU) as peak:
        time.sleep(0.02)
    assert peak.gib < 0.05


def test_results_say_where_and_of_what_they_are() -> None:
    about = machine(CPU)
    assert about["versions"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["date"][:2] == "20"
    assert len(about["processor"]) > 2


def test_columns_of_a_table_are_aligned_and_it_is_markdown() -> None:
    lines = markdown(["", "ms"], [["slow", "12.5"], ["fastest", "3"]])
    assert lines == [
        "|         |   ms |",
        "| ------- | ---: |",
        "| slow    | 12.5 |",
        "| fastest |    3 |",
    ]
