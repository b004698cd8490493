"""``essa bench compare``: turns, ratios of the same round, and failures that cost the others nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from essa_dist.bench import compare
from essa_dist.bench.children import ChildError
from essa_dist.bench.compare import BenchCompareConfig, Case, bench_compare
from essa_dist.bench.summary import summary
from essa_dist.errors import UsageError
from essa_dist.settings import load


def turn(rate: float, **more: Any) -> dict[str, Any]:
    return {
        "img_per_s": rate,
        "steps_s": [4 / rate],
        "phases_s": {"backward": 1 / rate},
        "peak_gib": 2.0,
        "processes": 1,
        "trained_trunk": 10,
        "trained_share": 0.1,
    } | more


def test_ratios_are_of_the_same_round() -> None:
    found = summary({"full": [turn(10), turn(2)], "apla": [turn(15, peak_gib=1.0), turn(3)]}, 1.0)
    _, apla = found["rows"]
    assert apla["throughput_ratio"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert apla["memory_ratio"] == 0.75
    assert apla["img_per_s"] == 9


def test_a_failed_turn_does_not_shift_the_rounds() -> None:
    broken = {"error": "out of memory"}
    found = summary({"full": [broken, turn(4)], "apla": [turn(100), turn(6)], "lora": [broken, broken]}, 1.0)
    assert [row["name"] for row in found["rows"]] == ["full", "apla"]
    assert found["rows"][1]["throughput_ratio"]["median"] == 1.5
    assert found["failed"] == {"full": "out of memory", "lora": "out of memory"}
    assert "lora failed: out of memory" in found["table"]


def test_the_share_of_the_peak_is_that_of_one_process() -> None:
    (row,) = summary({"full": [turn(8, processes=2, tflop_per_image=0.5)]}, 4.0)["rows"]
    assert row["mfu"] == pytest.approx(8 / 2 * 0.5 / 4)


def test_all_take_turns_and_the_file_holds_every_round(
    small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> dict[str, Any]:
        asked.append(command)
        if "peaks" in command:
            return {"machine": {}, "matmul_tflops": 1.0, "copy_gbs": 2.0}
        if "adapter=lora" in command:
            raise ChildError("it broke")
        return turn(4, batch_size=4)

    monkeypatch.setattr(compare, "run_json", answer)
    out = tmp_path / "compare.json"
    words = ["adapters=full,apla:rank=2,lora", "strategies=single,ddp@2", "rounds=2", f"out={out}"]
    config = load(BenchCompareConfig, None, words, values={"run": small})
    result = bench_compare(config)
    names = [f"{kind} {where}" for kind in ("full", "apla:rank=2") for where in ("single", "ddp@2")]
    assert [row["name"] for row in result["rows"]] == names
    assert set(result["failed"]) == {"lora single", "lora ddp@2"}
    assert json.loads(out.read_text())["rows"] == result["rows"]
    turns = asked[1:]
    assert [words.index("adapter.rank=2") > 0 for words in turns if "adapter=apla" in words] == [True] * 4
    assert turns[:6] != turns[6:]  # arithmetic is counted in the first round only, but where it failed
    assert ["count=true" in words for words in turns] == [True] * 6 + [False] * 4 + [True] * 2
    assert [words[words.index("--num_processes") + 1] for words in turns if "--num_processes" in words] == [
        "2"
    ] * 6


def test_variants_are_settings_and_weak_scaling_multiplies_the_batch(small: tuple[str, ...]) -> None:
    words = ["variants=engine.fast=true|engine.fast=false seed=3"]
    config = load(BenchCompareConfig, None, words, values={"run": small})
    assert config.variants == ("engine.fast=true", "engine.fast=false seed=3")
    case = Case("bitfit", "ddp@3", config.variants[1])
    made = case.words(small, weak=True)
    assert made[-4:] == ["adapter=bitfit", "engine.fast=false", "seed=3", "batch_size=12"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapters=full,aplaa"], "apla"),
        (["adapters=apla:rnk=3"], "rnk"),
        (["strategies=zero9@2"], "zero9"),
        (["strategies=ddp@two"], "write a name and a number"),
        (["variants=engine.fst=true|"], "fst"),
        (["out=no/where.json"], "its folder is not there"),
    ],
)
def test_what_can_not_be_compared_is_said_before_anything_is_measured(
    small: tuple[str, ...], words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "run_json", lambda *_, **__: pytest.fail("it measures"))
    config = load(BenchCompareConfig, None, words, values={"run": small})
    with pytest.raises(UsageError, match=said):
        bench_compare(config)
