"""``essa bench memory``: what autograd really keeps of a step for its backward pass, layer by layer, adapters side by side.

Units are those of tokens x width in 16 bits: what one activation of a block takes over all crops of the student. Not seen is
what a function keeps by hand, as the fast cross-entropies do with their gradients (outside of blocks): see ``saved``.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from essa_dist.backbones.saved import Saved, saved_tensors
from essa_dist.bench.compare import Case, Variants
from essa_dist.bench.machine import check_out, machine, write_result
from essa_dist.bench.subject import VALUES, Subject
from essa_dist.bench.tables import markdown
from essa_dist.data.batch import Batch
from essa_dist.distributed.collectives import world_size
from essa_dist.errors import UsageError
from essa_dist.planning.plan import crops_in_words, read_words
from essa_dist.settings import Config
from essa_dist.settings.words import OneOrMore

BLOCK = re.compile(r"(?:^|\.)vit\.blocks\.(\d+)(?:\.|$)(.*)")
OUTSIDE = "outside of blocks"


class BenchMemoryConfig(Config):
    """Words that are not named here are those of `essa adapt`: backbone.name, batch_size, data.crops, engine.keep."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    adapters: OneOrMore[str] = ("full", "apla")
    """Adapters, with settings after colons, as `full,apla:rank=8`; the first is what the others are compared with."""
    variants: Variants = ("",)
    """Settings to compare, as `engine.fast=true|engine.fast=false`; blanks between the words of one."""
    fused: bool = False
    """Take the fused attention on a CPU too, where it is slow, to see what a GPU keeps."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_memory(config: BenchMemoryConfig) -> dict[str, Any]:
    """Bytes and units by layer of a mean block, and bytes outside of blocks. Raises UsageError as ``essa adapt`` does."""
    check_out(config.out)
    rows: dict[str, dict[str, Any]] = {}
    for adapter in config.adapters:
        for variant in config.variants:
            name = " ".join([adapter, *([variant or "as it is"] if len(config.variants) > 1 else [])])
            words = Case(adapter, "single", variant).words(config.run, weak=False)
            rows[name] = kept(words, fused=config.fused)
    run = read_words(config.run)
    first = next(iter(rows.values()))
    result: dict[str, Any] = {
        "benchmark": "memory",
        "model": run.backbone.name,
        "crops": crops_in_words(run),
        "batch_size": run.batch_size,
        "rows": [{"name": name, **row, "ratio": row["bytes"] / first["bytes"]} for name, row in rows.items()],
        "settings": config.model_dump(mode="json"),
        "machine": first["machine"],
    }
    result["table"] = list(_lines(result))
    write_result(config.out, result)
    return result


def kept(words: Sequence[str], *, fused: bool = False) -> dict[str, Any]:
    """What the forward pass of this run's step keeps; ``fused``: with the fused attention everywhere."""
    subject = Subject(read_words(words))
    if world_size() > 1:
        raise UsageError(f"essa bench memory is for one process, not for {world_size()}")
    (batch,) = islice(subject.batches(), 1)
    model = subject.objective
    for block in model.backbone.vit.blocks if fused else ():
        if hasattr(block.attn, "fused_attn"):
            block.attn.register_forward_pre_hook(_fuse)  # behind the hook that looks at the device
    saved = saved_tensors(model, lambda: model(batch, teacher_temp=VALUES.teacher_temp))
    blocks = len(model.backbone.vit.blocks)
    unit = (
        2
        * tokens(batch, model.backbone.patch_size, model.backbone.num_prefix_tokens)
        * model.backbone.embed_dim
    )
    inside, outside, casts = split(saved)
    of_blocks = sum(inside.values())
    return {
        "layers": {name: size / blocks / unit for name, size in inside.items()},
        "units_a_block": of_blocks / blocks / unit,
        "unit_bytes": unit,
        "blocks": blocks,
        "block_bytes": of_blocks / blocks,
        "outside_bytes": outside,
        "cast_bytes": casts,
        "bytes": of_blocks + outside + casts,
        "machine": machine(subject.device),
    }


def _fuse(attention: Any, args: Any) -> None:
    attention.fused_attn = True


def tokens(batch: Batch, patch_size: int, prefix: int) -> int:
    """Of all the student's crops in a batch."""
    views = (batch.global_crops, batch.local_crops)
    return sum(len(v) * v.shape[1] * ((v.shape[-1] // patch_size) ** 2 + prefix) for v in views if len(v))


def split(saved: Sequence[Saved]) -> tuple[dict[str, float], float, float]:
    """Bytes of activations by layer, over all blocks; outside of them; and of the half-precision copies of trained tensors."""
    inside: dict[str, float] = {}
    outside = casts = 0.0
    for one in saved:
        found = BLOCK.search(one.module)
        if one.kind == "cast":
            casts += one.nbytes
        elif one.kind != "activation":
            continue
        elif found:
            name = found[2] or "the block itself"
            inside[name] = inside.get(name, 0.0) + one.nbytes
        else:
            outside += one.nbytes
    return {name: size for name, size in inside.items() if size}, outside, casts


def _lines(r: dict[str, Any]) -> Iterator[str]:
    rows = r["rows"]
    yield (
        f"{r['model']}, {r['crops']}, batch {r['batch_size']}: kept for the backward pass; a block's layers in units of "
        f"tokens x width in 16 bits = {rows[0]['unit_bytes'] / 1e6:.4g} MB"
    )
    names = dict.fromkeys(name for row in rows for name in row["layers"])
    body = [[name, *(f"{row['layers'].get(name, 0.0):.2f}" for row in rows)] for name in names]
    body.append(["a block, units", *(f"{row['units_a_block']:.2f}" for row in rows)])
    body += [
        [words, *(f"{row[key] / 1e6:,.1f}" for row in rows)]
        for words, key in (
            ("a block, MB", "block_bytes"),
            (f"{OUTSIDE}, MB", "outside_bytes"),
            ("copies of trained tensors, MB", "cast_bytes"),
            ("in all, MB", "bytes"),
        )
    ]
    body.append(["ratio", *(f"{row['ratio']:.2f}" for row in rows)])
    yield from markdown(["", *(row["name"] for row in rows)], body)
