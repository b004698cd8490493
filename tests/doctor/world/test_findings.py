"""From hand-made records: each common fault is found, named with its ranks, and a sound world shows none."""

from typing import Any

import pytest

from essa_dist.doctor.world.findings import Finding, judge
from essa_dist.doctor.world.findings_run import judge_run, launch_file
from essa_dist.doctor.world.record import Device
from essa_dist.doctor.world.run import RunFacts
from tests.doctor.world.records import facts, gpu, with_run, world


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    assert "\n" not in findings[0].text
    return findings[0]


def test_a_sound_world_and_run_show_nothing() -> None:
    assert judge(with_run()) == []
    assert judge_run(with_run()) == []
    assert judge_run(world()) == []


@pytest.mark.parametrize(
    ("changes", "words", "stops", "warns"),
    [
        ({"versions": {3: {"torch": "2.12.0", "timm": "1.0.31", "driver": "580.1"}}}, "torch differs: 2.13.0 on ranks 0-2, 2.12.0 on rank 3", True, False),
        ({"versions": {1: {"torch": "2.13.0", "timm": None, "driver": "580.1"}}}, "timm differs: 1.0.31 on ranks 0, 2-3, missing on rank 1; install", False, False),
        ({"versions": {0: {"torch": "2.13.0", "timm": "1.0.31", "driver": "570.2"}}}, "driver differs: 570.2 on rank 0, 580.1 on ranks 1-3; install the same driver", False, False),
        ({"world_size": {2: 2, 3: 2}}, "WORLD_SIZE is 4 on ranks 0-1, 2 on ranks 2-3", True, False),
        ({"node": {1: "boot1"}}, "unequal numbers of ranks on the nodes: 1 on host0, 3 on host", False, False),
        ({"device": {3: gpu(1, 1, identity="gpu10")}}, "ranks 2-3 share cuda:0 of host1, where 2 ranks see 2 GPU(s)", True, False),
        ({"device": {1: Device(name="cpu", kind="Xeon", identity="cpu", memory_gib=64, free_gib=60, on_host=0)}}, "rank 1 on the CPU, ranks 0, 2-3 on GPUs", True, False),
        ({"device": {2: gpu(1, 0, kind="A100")}}, "unequal GPUs: H100 80 GiB on ranks 0-1, 3, A100 80 GiB on rank 2", False, True),
        ({"device": {2: gpu(1, 0, free_gib=50.5)}}, "rank 2: cuda:0 of host1 has 50.5 of 79.6 GiB free", False, True),
        ({"environment": {1: {}}}, "NCCL_DEBUG differs: WARN on ranks 0, 2-3, not set on rank 1", False, False),
        ({"environment": {2: {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "ib0"}}}, "rank 2: NCCL_SOCKET_IFNAME=ib0 is no interface of host1, which has lo, eth3", True, False),
        ({"gloo_address": {1: "127.0.1.1"}}, "rank 1: gloo would offer 127.0.1.1, the loopback of host0, to the other hosts: export GLOO_SOCKET_IFNAME=eth3", True, False),
        ({"shm_gib": dict.fromkeys((2, 3), 0.4)}, "host1: /dev/shm has 0.4 GiB for 2 rank(s), whose data workers need 0.5", False, False),
        ({"open_files": {0: 256}}, "host0: 256 open files a process are allowed: ulimit -n", False, False),
        ({"clock": {1: 1007.5}}, "clocks differ by 8 s: host0 (rank 0) is behind host0 (rank 1)", False, False),
    ],
)  # fmt: skip
def test_a_fault_of_the_world_is_one_line_with_its_ranks(
    changes: dict[str, dict[int, Any]], words: str, stops: bool, warns: bool
) -> None:
    found = only(judge(world(**changes)))
    assert words in found.text
    assert (found.stops, found.warns) == (stops, warns)


def test_hosts_may_call_their_interfaces_by_other_names() -> None:
    names = {0: {"GLOO_SOCKET_IFNAME": "eth3"}, 1: {"GLOO_SOCKET_IFNAME": "lo"}, 2: {}, 3: {}}
    assert judge(world(environment=names)) == []


def test_hosts_of_one_trouble_are_one_line() -> None:
    looped = dict.fromkeys(range(4), "127.0.1.1")
    assert "ranks 0-3: gloo would offer 127.0.1.1" in only(judge(world(gloo_address=looped))).text
    named = {rank: {"GLOO_SOCKET_IFNAME": "eth"} for rank in range(4)}
    texts = [finding.text for finding in judge(world(environment=named))]
    assert texts == [
        f"{who}: GLOO_SOCKET_IFNAME=eth is no interface of {host}, which has lo, eth3"
        for who, host in (("ranks 0-1", "host0"), ("ranks 2-3", "host1"))
    ]


def test_prefixes_exact_names_and_exclusions_are_nccls_and_accepted() -> None:
    for value in ("eth", "=eth3", "^docker0", "eth3,eth"):
        named = {rank: {"NCCL_SOCKET_IFNAME": value} for rank in range(4)}
        assert judge(world(environment=named)) == []


def test_on_one_host_the_loopback_is_as_good_as_any_address() -> None:
    same = {"node": dict.fromkeys(range(4), "boot0"), "gloo_address": dict.fromkeys(range(4), "127.0.1.1")}
    devices = {r: gpu(0, r, on_host=4) for r in range(4)}
    assert judge(world(**same, device=devices)) == []


def test_all_faults_are_told_at_once() -> None:
    found = judge(world(clock={0: 900.0}, world_size={1: 5}, open_files={2: 100}))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({1: facts(settings={"seed": "2", "batch_size": "8", "data.train": "PACKED"})}, "config: seed is 1 on ranks 0, 2-3, 2 on rank 1"),
        ({1: facts(settings={"batch_size": "8", "data.train": "PACKED"})}, "config: seed is 1 on ranks 0, 2-3, not set on rank 1"),
        ({2: facts(trunk="c3" * 32)}, "pretrained weights differ: hash a1a1a1a1a1a1 on ranks 0-1, 3, c3c3c3c3c3c3 on rank 2"),
        ({3: facts(data="d4" * 32)}, "training data differ: hash b2b2b2b2b2b2 on ranks 0-2, d4d4d4d4d4d4 on rank 3"),
        ({2: RunFacts(failures=["no file run.yaml"]), 3: RunFacts(failures=["no file run.yaml"])}, "ranks 2-3 on host1: no file run.yaml"),
    ],
)  # fmt: skip
def test_a_fault_of_the_run_is_one_line_with_its_ranks(changed: dict[int, RunFacts], words: str) -> None:
    found = only(judge_run(with_run(changed)))
    assert words in found.text
    assert not found.warns


def test_places_may_have_other_names_but_not_other_contents() -> None:
    elsewhere = facts(settings=facts().settings | {"data.train": "/local/PACKED"})
    assert only(judge_run(with_run({1: elsewhere}))).warns
    other = elsewhere.model_copy(update={"data": "d4" * 32})
    assert [f.warns for f in judge_run(with_run({1: other}))] == [True, False]


def test_weights_are_compared_over_those_ranks_that_read_them() -> None:
    assert judge_run(with_run({r: facts(trunk=None) for r in (1, 3)})) == []
    found = only(judge_run(with_run({1: facts(trunk=None), 2: facts(trunk="c3" * 32)})))
    assert "a1a1a1a1a1a1 on ranks 0, 3, c3c3c3c3c3c3 on rank 2" in found.text


def test_an_output_folder_of_its_own_on_another_host_is_a_warning() -> None:
    found = only(judge_run(with_run({r: facts(sees_out=False) for r in (2, 3)})))
    assert found.warns
    assert "out is another folder for ranks 2-3 on host1 than for rank 0" in found.text


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "nearest"),
    [(8, 1, None), (8, 2, None), (11, 1, 12), (8, 4, 16), (1, 1, 4), (24, 3, None)],
)
def test_a_batch_that_the_ranks_cannot_share_comes_with_the_nearest_that_they_can(
    batch_size: int, accumulate: int, nearest: int | None
) -> None:
    same = facts(batch_size=batch_size, accumulate=accumulate)
    found = judge_run(with_run(dict.fromkeys(range(4), same)))
    if nearest is None:
        assert found == []
    else:
        assert only(found).text.endswith(f"the nearest that can is {nearest}")


def test_many_different_settings_do_not_flood_the_report() -> None:
    other = facts(settings={f"key{i}": "1" for i in range(40)})
    found = judge_run(with_run({3: other}))
    assert len(found) == 6
    assert "38 more keys differ" in found[-1].text


def test_a_launchers_numbers_are_held_against_the_world() -> None:
    assert list(launch_file(4, 2, {"num_processes": 4, "num_machines": "2"}, "x.yaml")) == []
    assert list(launch_file(4, 2, {}, "x.yaml")) == []
    assert (
        "num_processes: 2, and 4 processes" in only(list(launch_file(4, 1, {"num_processes": 2}, "x"))).text
    )
    found = only(list(launch_file(1, 1, {"num_processes": 2}, "x.yaml")))
    assert found.text.startswith("x.yaml says num_processes: 2, and 1 processes came")
    assert "num_machines: 3, and 2 nodes" in only(list(launch_file(4, 2, {"num_machines": 3}, "x.yaml"))).text
