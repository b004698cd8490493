"""``essa bench head | attention | memory``: parts of the step alone, and that they are parts of that step."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from essa_dist.bench import attention
from essa_dist.bench.attention import BenchAttentionConfig, bench_attention, fused, plain, ways_on
from essa_dist.bench.head import BenchHeadConfig, HeadsAlone, bench_head
from essa_dist.bench.memory import BenchMemoryConfig, bench_memory, kept, tokens
from essa_dist.bench.subject import Subject
from essa_dist.errors import UsageError
from essa_dist.planning.plan import read_words
from essa_dist.settings import load


def test_every_way_of_attention_gives_the_same_values_and_gradients() -> None:
    sizes = ((2, 5), (3, 4))
    ways, left_out = ways_on(torch.device("cpu"), torch.float32, sizes)
    assert set(left_out) == {"variable length", "FlexAttention"}
    found = {}
    for name, way in ways.items():
        torch.manual_seed(0)
        groups = [torch.randn(*size, 3, 2, 8, requires_grad=True) for size in sizes]
        out = way(groups)
        found[name] = [
            *out,
            *torch.autograd.grad(torch.stack([(part**2).sum() for part in out]).sum(), groups),
        ]
    first, *others = found.values()
    assert len(others) == 2
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_way_of_attention_agrees_on_a_gpu() -> None:
    device, sizes = torch.device("cuda"), ((2, 257), (8, 50))
    ways, _ = ways_on(device, torch.bfloat16, sizes)
    torch.manual_seed(0)
    groups = [torch.randn(*size, 3, 6, 64, device=device, dtype=torch.bfloat16) for size in sizes]
    expected = torch.cat([plain(qkv.float()).flatten() for qkv in groups])
    for name, way in ways.items():
        out = way(groups)
        if name.startswith("FlexAttention"):
            out = [out[0].transpose(1, 2).flatten(2)]
        got = torch.cat([part.flatten() for part in out]).float()
        assert (got - expected).abs().max() < 0.03, name


def test_attention_is_timed_on_the_crops_of_the_run(small: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "attention.json"
    result = bench_attention(BenchAttentionConfig(run=small, rounds=1, out=str(out)))
    assert result["sizes"] == (
        (8, 5),
        (12, 2),
    )  # 2 x 4 crops of 4 patches and 3 x 4 of 1, each with a class token
    assert json.loads(out.read_text())["rows"] == result["rows"]
    assert result["rows"][0]["speedup"] == 1
    assert plain(torch.randn(2, 5, 3, 2, 8)).shape == fused(torch.randn(2, 5, 3, 2, 8)).shape == (2, 5, 16)


def test_a_way_of_attention_that_fails_here_is_left_out_and_said(
    small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(groups: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("no such kernel\nand a long story")

    there = attention.ways_on
    monkeypatch.setattr(attention, "ways_on", lambda *a: ({**there(*a)[0], "new": fails}, {}))
    result = bench_attention(BenchAttentionConfig(run=small, rounds=1))
    assert result["left_out"] == {"new": "no such kernel"}
    assert "new" not in {row["way"] for row in result["rows"]}


def test_crops_that_do_not_fit_the_patches_are_refused(small: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="33 px are not a multiple of the patch size"):
        bench_attention(BenchAttentionConfig(run=(*small, "data.crops.global_size=33")))


def test_heads_are_timed_on_the_rows_of_a_step_and_both_ways_agree(small: tuple[str, ...]) -> None:
    result = bench_head(BenchHeadConfig(run=small, rounds=1, times=1))
    slow, fast = result["rows"]
    assert (slow["way"], fast["way"]) == ("slow", "fast")
    assert slow["loss"] == pytest.approx(fast["loss"], rel=1e-4)
    heads = HeadsAlone(read_words(small))
    assert result["student_rows"] == 8 + 12 + int(heads.batch.masks.sum())
    assert result["prototypes"] == 48


def test_the_heads_backward_reaches_the_features_and_leaves_no_gradient(small: tuple[str, ...]) -> None:
    heads = HeadsAlone(read_words(small))
    reached: list[torch.Tensor] = []
    for tensor in heads.features:
        tensor.register_hook(reached.append)
    heads.once()
    assert len(reached) >= 3  # class tokens of both groups, patches of the global crops
    assert all(p.grad is None for p in heads.objective.parameters())


def test_memory_is_what_autograd_keeps_apla_less_than_full(small: tuple[str, ...]) -> None:
    config = load(BenchMemoryConfig, None, ["adapters=full,apla:rank=2"], values={"run": small})
    full, apla = bench_memory(config)["rows"]
    assert (full["ratio"], full["name"], apla["name"]) == (1, "full", "apla:rank=2")
    assert apla["ratio"] < 0.9
    assert full["layers"]["mlp.fc1"] > 0
    assert apla["layers"].get("mlp.fc1", 0) == 0  # frozen: its input is not needed
    for row in (full, apla):
        assert row["units_a_block"] == pytest.approx(sum(row["layers"].values()))
        assert row["bytes"] == pytest.approx(
            row["blocks"] * row["block_bytes"] + row["outside_bytes"] + row["cast_bytes"]
        )


def test_a_linear_layer_that_is_trained_keeps_one_unit_of_16_bits_for_its_input(
    small: tuple[str, ...],
) -> None:
    words = (*small, "precision=bf16", "adapter=full", "engine.fast=false")
    row = kept(words, fused=True)
    assert row["layers"]["attn.qkv"] == pytest.approx(1, rel=0.01)
    # A quarter of a block's parameters aside, what a plain block keeps in 16 bits: the 18 units of the paper's arithmetic.
    assert 12 < row["units_a_block"] < 22
    (batch,) = islice(Subject(read_words(words)).batches(), 1)
    assert tokens(batch, 16, 1) == 8 * 5 + 12 * 2
    assert row["unit_bytes"] == 2 * 64 * 64


def test_variants_stand_side_by_side(small: tuple[str, ...]) -> None:
    words = ["adapters=bitfit", "variants=engine.fast=false|"]
    config = load(BenchMemoryConfig, None, words, values={"run": small})
    assert [row["name"] for row in bench_memory(config)["rows"]] == [
        "bitfit engine.fast=false",
        "bitfit as it is",
    ]
