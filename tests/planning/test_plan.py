"""The planner against counts by hand, real parameters, recorded traffic and runs with the settings it only reckons with."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from essa_dist.adapters import inject_adapter
from essa_dist.backbones.build import build_architecture
from essa_dist.cli.planned import planned
from essa_dist.engine.config import RunConfig
from essa_dist.errors import OutOfMemory, UsageError
from essa_dist.planning.allocator import MIB, reserved_peak
from essa_dist.planning.config import PlanConfig
from essa_dist.planning.devices import known_as, parse, read_table
from essa_dist.planning.fake import Seen, see_step
from essa_dist.planning.forecast import Forecast, after, before
from essa_dist.planning.layouts import LAYOUTS, Layout
from essa_dist.planning.memory import Memory
from essa_dist.planning.plan import plan, read_words
from essa_dist.planning.sizes import IMAGES, PATCHES, Load, size_of
from essa_dist.planning.speed import Work
from essa_dist.planning.tracker import Tracker

ROOT = Path(__file__).resolve().parents[2]
LOAD = Load(6, 300)
SINGLE = Layout("single", 1)
SMALL = (
    "backbone.name=vit_tiny_patch16_224",
    "objective.head={prototypes: 4096}",
    "data.crops={global_size: 96, local_size: 48, n_local: 3}",
)


@cache
def seen(*words: str) -> Seen:
    return see_step(read_words([*SMALL, *words]), gpu=True)


def test_sizes_tell_how_they_grow_from_one_number() -> None:
    assert size_of(7 * IMAGES).at(Load(3, 5)) == 21
    assert size_of(7 * PATCHES).at(Load(3, 5)) == 35
    assert size_of(2 * IMAGES * IMAGES).at(Load(3, 5)) == 18
    assert size_of(4096).at(Load(3, 5)) == 4096
    assert size_of(9_000_000_001).at(Load(3, 5)) == 9_000_000_001
    assert size_of(7 * IMAGES + 9 * PATCHES).at(Load(3, 5)) == 66
    assert size_of(3 * 4 * (20 * IMAGES + 3 * PATCHES)).at(Load(3, 5)) == 12 * 75
    assert size_of(4 * (20 * IMAGES + 3 * PATCHES + 1)).at(Load(3, 5)) == 4 * 75


def test_tracker_counts_bytes_and_products_as_one_does_by_hand() -> None:
    tracker = Tracker()
    with FakeTensorMode(), tracker:
        x = torch.empty(IMAGES, 8)
        w = torch.empty(8, 16, requires_grad=True)
        tracker.know([x, w], "images")
        tracker.recording = True
        y = (x @ w).relu()
        z = y.view(-1)  # no memory of its own
        del y
        tracker.recording = False
    made = [b.size.at(Load(5, 0)) for b in tracker.blocks[2:]]
    assert made == [5 * 16 * 4, 5 * 16 * 4]
    assert [b.died is not None for b in tracker.blocks[2:]] == [True, False]
    assert [o.flops.at(Load(5, 0)) for o in tracker.operations if o.matrix] == [2 * 5 * 8 * 16]
    del z


def test_a_convolution_in_16_bits_takes_copies_on_a_cpu_while_it_runs() -> None:
    def passing(dtype: torch.dtype) -> list[float]:
        tracker = Tracker(reorders=True)
        with FakeTensorMode(), tracker:
            x, w = torch.empty(IMAGES, 3, 8, 8, dtype=dtype), torch.empty(5, 3, 1, 1, dtype=dtype)
            tracker.know([x, w], "images")
            tracker.recording = True
            y = torch.conv2d(x, w)
            tracker.recording = False
        made = tracker.blocks[2:]
        assert y.shape == (IMAGES, 5, 8, 8)
        return [block.size.at(Load(10_000, 0)) for block in made if block.died is not None]

    assert passing(torch.bfloat16) == pytest.approx([10_000 * 64 * (3 + 5) * 2])
    assert passing(torch.float32) == []


def test_allocator_takes_segments_as_cuda_does() -> None:
    def held(*sizes: int) -> int:
        return reserved_peak([(1, n) for n in range(len(sizes))], sizes)

    assert held(1) == 2 * MIB
    assert held(MIB, MIB) == 2 * MIB
    assert held(MIB + 1) == 20 * MIB
    assert held(11 * MIB) == 12 * MIB
    # The hole of the first is too small for the third, and is taken by the fourth.
    assert (
        reserved_peak([(1, 0), (1, 1), (-1, 0), (1, 2), (1, 3)], [12 * MIB, 30 * MIB, 14 * MIB, 12 * MIB])
        == 56 * MIB
    )


def test_allocator_merges_what_is_freed_side_by_side() -> None:
    sizes = [6 * MIB, 6 * MIB, 6 * MIB, 18 * MIB]
    freed = [(1, 0), (1, 1), (1, 2), (-1, 1), (-1, 0), (-1, 2), (1, 3)]
    assert reserved_peak(freed, sizes) == 20 * MIB


@pytest.mark.parametrize("adapter", ["apla", "lora", "full", "frozen"])
def test_what_is_trained_is_counted_exactly(adapter: str) -> None:
    run = read_words([*SMALL, f"adapter={adapter}"])
    backbone = build_architecture(run.backbone)
    inject_adapter(backbone, run.adapter, seed=0)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert seen(f"adapter={adapter}").sets.trunk_parameters == trained


def test_terms_add_up_to_the_highest_point_of_the_timeline() -> None:
    memory = Memory(seen("adapter=apla"), 1)
    for name in LAYOUTS:
        layout = Layout(name, 1 if name == "single" else 4)
        total = np.sum([values for _, values in memory.timeline(LOAD, layout)], axis=0)
        assert memory.peak(LOAD, layout).allocated == pytest.approx(total.max())


def test_an_adapter_keeps_less_than_full_training() -> None:
    apla, full = (Memory(seen(f"adapter={kind}"), 1).peak(LOAD, SINGLE).terms for kind in ("apla", "full"))
    assert apla["activations 2 x 96 px"] < 0.75 * full["activations 2 x 96 px"]
    assert apla["optimizer"] < full["optimizer"]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (("backbone.checkpoint_activations=true",), {"accumulate": 1, "recompute": True}),
        (("accumulate=2",), {"accumulate": 2}),
    ],
)
def test_settings_that_are_only_reckoned_with_come_near_a_run_with_them(
    words: tuple[str, ...], change: dict[str, int]
) -> None:
    real = Memory(seen("adapter=full", *words), change["accumulate"]).peak(LOAD, SINGLE).allocated
    reckoned = Memory(seen("adapter=full"), **change).peak(LOAD, SINGLE).allocated  # type: ignore[arg-type]
    assert reckoned == pytest.approx(real, rel=0.1)


def test_accumulating_costs_the_survey_and_recomputing_a_forward_pass() -> None:
    plain, twice = seen("adapter=apla"), seen("adapter=apla", "accumulate=2")
    real = Work(twice, 2).flops_at(LOAD)
    assert Work(plain, 2).flops_at(LOAD) == pytest.approx(real, rel=0.05)
    again = Work(seen("adapter=apla", "backbone.checkpoint_activations=true"), 1).flops_at(LOAD)
    assert Work(plain, 1, recompute=True).flops_at(LOAD) == pytest.approx(again, rel=0.05)


def test_what_ranks_send_is_what_was_measured_of_them() -> None:
    rows = json.loads((ROOT / "benchmarks/results/traffic.json").read_text())["measured"]
    words = (
        "backbone.name=vit_small_patch16_224",
        "data.crops={global_size: 96, local_size: 48, n_local: 2}",
    )
    for row in rows:
        run = seen(*words, f"adapter={row['adapter']}", "engine.fast=false")  # as it was measured
        sent = Layout(row["strategy"], 2).sent(run, 1, gloo=True) / 1e6
        assert sent == pytest.approx(row["sent_MB"], rel=0.04), row


def test_flops_of_a_large_vit_are_those_of_the_arithmetic() -> None:
    # 24 blocks of 12 C^2 numbers and attention over N tokens, 2 operations each; the student's backward pass makes the
    # gradients of all inputs, and of the weights of proj, a twelfth.
    run = see_step(
        read_words(["backbone.name=dinov2_vits14", "adapter=apla", "objective.head={prototypes: 1024}"]),
        gpu=True,
    )
    width, depth = 384, 12
    forward = {n: depth * (2 * 12 * width**2 * n + 4 * n**2 * width) for n in (257, 50)}
    student = 2 * forward[257] + 8 * forward[50]
    attention = depth * width * 4 * (2 * 257**2 + 8 * 50**2)
    weights = depth * 2 * width**2 * (2 * 257 + 8 * 50)
    expected = (
        2 * forward[257] + 2 * student + weights + 0.5 * attention
    )  # flash attention makes its scores again
    trunk = [o for o in run.tracker.operations if o.matrix]
    found = sum(o.flops.at(Load(1, 0)) for o in trunk)
    assert found == pytest.approx(expected, rel=0.12)  # heads, patch embedding


def test_a_plan_names_layouts_that_fit_and_ways_out_where_none_does(tmp_path: Path) -> None:
    table = tmp_path / "mine.yaml"
    table.write_text(
        "devices: {tiny: {name: t, memory_gib: 0.35, tflops: {bf16: 9}, bandwidth_gbs: 90, source: x}}\n"
    )
    picture = tmp_path / "p.png"
    words = (*SMALL, "batch_size=64", "duration=100")
    config = PlanConfig(run=words, devices="h100,tiny,4xl4", table=str(table), price=2, picture=str(picture))
    result = plan(config)
    h100, tiny, four = result["rows"]
    assert h100["fits"]
    assert h100["layout"] == "single"
    assert h100["largest_batch"] > 64
    assert not tiny["fits"]
    assert len(tiny["ways_out"]) == 2
    assert four["layout"] in LAYOUTS[1:]
    assert four["sent_bytes"] > 0
    assert h100["cost"][0] == pytest.approx(2 * h100["hours"][0])
    assert picture.stat().st_size > 10_000
    text = planned(result)
    assert "what dominates" in text
    assert "tiny: does not fit" in text
    assert len(text.splitlines()) < 50
    assert max(map(len, text.splitlines())) < 200


def test_a_step_that_keeps_less_is_seen_once_for_all_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs: list[tuple[str, str]] = []

    def see(run: RunConfig, **options: object) -> Seen:
        runs.append((run.engine.keep, str(run.engine.recompute)))
        return see_step(run, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("essa_dist.planning.choices.see_step", see)
    table = tmp_path / "mine.yaml"
    entry = "{name: t, memory_gib: 0.04, tflops: {bf16: 9}, bandwidth_gbs: 90, source: x}"
    table.write_text(f"devices: {{tiny: {entry}, other: {entry}}}\n")
    words = ("backbone.name=test_vit", *SMALL[1:], "batch_size=64", "duration=9")
    rows = plan(PlanConfig(run=words, devices="tiny,other", table=str(table)))["rows"]
    assert rows[0]["ways_out"] == rows[1]["ways_out"]
    assert sorted(runs) == [("8bit", "none"), ("exact", "mlp"), ("exact", "none")]


def test_wrong_words_are_errors_with_a_way_out(tmp_path: Path) -> None:
    table = read_table()
    with pytest.raises(UsageError, match="did you mean h100"):
        parse("8xh10", table)
    with pytest.raises(UsageError, match="at least one"):
        parse("0xh100", table)
    with pytest.raises(UsageError, match="did you mean ethernet_25g"):
        table.interconnect("ethernet25g")
    with pytest.raises(UsageError, match="no table"):
        read_table(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="one word too many"):
        read_words(["a.yaml", "b.yaml"])


def test_a_batch_that_ranks_cannot_share_is_said_of_that_row_alone() -> None:
    rows = plan(PlanConfig(run=(*SMALL, "batch_size=64", "duration=9"), devices="3xh100,h100"))["rows"]
    assert "not a multiple of 3 ranks" in rows[0]["problem"]
    assert rows[1]["fits"]


ANSWER = {
    "needs": 9e9,
    "memory": 5e9,
    "name": "GPU",
    "terms": {"trunk": 2e9, "heads and logits": 7e9},
    "dominates": "heads and logits",
    "ways": ["accumulate=2 (about +9 % time)"],
}


def test_a_run_that_will_not_fit_is_warned_and_one_that_did_not_hears_the_term() -> None:
    assert "accumulate=2" in before(ANSWER)
    assert before(ANSWER | {"memory": 1e10}) == "" == before(None)
    assert "heads and logits, 6.5 GiB" in after(ANSWER)
    assert "nvidia-smi" in after(ANSWER | {"memory": 1e10})


def test_running_out_of_memory_ends_with_the_plan_and_other_errors_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Forecast, "_ask", lambda self: ANSWER)
    config = RunConfig(out="x")
    with pytest.raises(OutOfMemory, match="accumulate=2"), Forecast(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(KeyError), Forecast(config):
        raise KeyError("x")


def test_a_trunk_in_8_bits_is_planned_at_the_rate_of_a_device_that_has_it() -> None:
    def seconds(device: str, *words: str) -> float:
        speed = plan(PlanConfig(run=(*SMALL, *words, "batch_size=64", "duration=9"), devices=device))["rows"][
            0
        ]
        return float(speed["img_per_s"][0])

    eight = ("engine.trunk=fp8",)
    tracked = see_step(read_words([*SMALL, *eight]), gpu=True, fp8=True).tracker.operations
    share = sum(o.flops.at(LOAD) for o in tracked if o.eight) / sum(
        o.flops.at(LOAD) for o in tracked if o.matrix
    )
    assert 0.4 < share < 0.95  # frozen layers of the blocks, forward and input gradient
    assert seconds("a100", *eight) <= seconds("a100")


@pytest.mark.parametrize(
    "words", [(), ("engine.trunk=fp8",), ("engine.trunk=nf4",), ("engine.recompute=mlp",)]
)
def test_products_are_counted_alike_however_the_trunk_is_kept(words: tuple[str, ...]) -> None:
    plain = Work(seen("engine.fast=false"), 2).flops_at(LOAD)  # with the pass before several micro-batches
    run = see_step(read_words([*SMALL, *words]), gpu=True, fp8=True)
    again = 1.25 if "engine.recompute=mlp" in words else 1.0
    assert (
        Work(run, 2).flops_at(LOAD) == pytest.approx(plain, rel=0.04)
        or plain < Work(run, 2).flops_at(LOAD) < again * plain
    )


def test_offloading_takes_activations_off_the_device_and_time_on_its_way_to_the_host() -> None:
    on, off = seen("adapter=apla"), seen("adapter=apla", "engine.offload=true")
    before, after = (Memory(s, 1).peak(LOAD, SINGLE).terms for s in (on, off))
    kept = [
        sum(size for name, size in terms.items() if name.startswith("activations"))
        for terms in (before, after)
    ]
    assert kept[1] < 0.25 * kept[0]
    assert after["one block, back from the host"] < 0.2 * kept[0]
    table = read_table()
    args = (LOAD, SINGLE, table.device("h100"), table.interconnect("gloo"))
    now, then = (Work(s, 1).speed(*args, precision="bf16", per_machine=8).seconds for s in (on, off))
    assert then[0] > now[0]


def test_the_longest_name_of_a_gpu_is_its_own() -> None:
    table = read_table()
    assert known_as("NVIDIA L40S", table) == "l40s"
    assert known_as("NVIDIA H100 80GB HBM3", table) == "h100"
    assert known_as("NVIDIA GeForce RTX 4090", table) == "rtx4090"
    assert known_as("Tesla T4", table) is None


def test_cross_entropies_in_slices_are_counted_whole_and_keep_less_than_all_logits() -> None:
    words = ("objective.head.prototypes=65536", "engine.fast=")
    fast, slow = (seen(*words[:1], words[1] + on) for on in ("true", "false"))
    load = Load(640, 640 * 36 * 2 * 0.15)
    assert Work(fast, 1).flops_at(load) == pytest.approx(Work(slow, 1).flops_at(load), rel=0.03)
    kept = [Memory(s, 1).peak(load, SINGLE).terms["heads and logits"] for s in (fast, slow)]
    assert kept[0] < 0.5 * kept[1]
