"""``essa bench attention``: the attention of a block over all crops of a batch, several ways, forward and backward in turns.

Shapes: B images, N tokens, H heads, D features of a head, T tokens of all crops; qkv is [B, N, 3, H, D].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from essa_dist.backbones.attention import ExplicitAttention
from essa_dist.backbones.build import build_architecture
from essa_dist.backbones.packed import flash_varlen, sequence_ends
from essa_dist.bench.clock import seconds_of, spread
from essa_dist.bench.machine import MemoryPeak, check_out, machine, write_result
from essa_dist.bench.subject import prepare_process
from essa_dist.bench.tables import markdown
from essa_dist.data.views import N_GLOBAL
from essa_dist.engine.build import DTYPES
from essa_dist.engine.config import RunConfig
from essa_dist.errors import UsageError
from essa_dist.kernels import TRIED
from essa_dist.planning.plan import crops_in_words, read_words
from essa_dist.settings import Config

Sizes = tuple[tuple[int, int], ...]
"""(B, N) of each group of crops."""
Way = Callable[[list[Tensor]], Sequence[Tensor]]
"""qkv of each group to what its tokens take."""


class BenchAttentionConfig(Config):
    """Words that are not named here are those of `essa adapt`: backbone.name, batch_size, data.crops, precision, device."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    rounds: int = Field(5, ge=1)
    """Turns of each way."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_attention(config: BenchAttentionConfig) -> dict[str, Any]:
    """Seconds of one block's attention and memory above what is there before, by way. Raises UsageError as ``essa adapt`` does."""
    check_out(config.out)
    run = read_words(config.run)
    device, dtype = prepare_process(run), DTYPES[run.precision]
    sizes, heads, width = _shapes(run)
    ways, left_out = ways_on(device, dtype, sizes)
    generator = torch.Generator(device).manual_seed(0)
    groups = [
        torch.randn(*size, 3, heads, width, device=device, generator=generator).to(dtype).requires_grad_()
        for size in sizes
    ]

    def both(way: Way) -> None:
        out = way(groups)
        torch.autograd.grad(out, groups, [torch.ones_like(part) for part in out])

    for name in list(ways)[1:]:
        try:
            both(ways[name])
        except Exception as error:  # a compiler's can be of any kind
            left_out[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            del ways[name]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for number in range(config.rounds):
        for name, way in ways.items():
            warmup = 2 if number == 0 else 1
            seconds[name] += seconds_of(lambda way=way: both(way), device, warmup=warmup, times=3)  # type: ignore[misc]
            if number == 0:
                with MemoryPeak(device) as peak:
                    both(way)
                peaks[name] = peak.gib
    first = spread(next(iter(seconds.values())))["median"]
    rows = [
        {"way": name, "seconds": spread(taken), "speedup": first / spread(taken)["median"]}
        | {"peak_gib": peaks[name]}
        for name, taken in seconds.items()
    ]
    result = {
        "benchmark": "attention",
        "rows": rows,
        "left_out": left_out,
        "kernels": dict(TRIED),
        "sizes": sizes,
        "heads": heads,
        "head_dim": width,
        "settings": config.model_dump(mode="json"),
        "machine": machine(device),
    }
    result["table"] = _table(run, rows, left_out)
    write_result(config.out, result)
    return result


def _shapes(run: RunConfig) -> tuple[Sizes, int, int]:
    """(B, N) of each group, heads, features of a head."""
    with torch.device("meta"):
        backbone = build_architecture(run.backbone)
    attention = backbone.vit.blocks[0].attn
    crops = run.data.crops
    views = [(N_GLOBAL, crops.global_size), *([(crops.n_local, crops.local_size)] if crops.n_local else [])]
    for _, pixels in views:
        if pixels % backbone.patch_size:
            raise UsageError(
                f"crops of {pixels} px are not a multiple of the patch size {backbone.patch_size} of {backbone.name}"
            )
    sizes = tuple(
        (n * run.batch_size, (pixels // backbone.patch_size) ** 2 + backbone.num_prefix_tokens)
        for n, pixels in views
    )
    return sizes, attention.num_heads, backbone.embed_dim // attention.num_heads


def ways_on(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> tuple[dict[str, Way], dict[str, str]]:
    """What can be done here, the plainest first; and why others can't."""
    ways: dict[str, Way] = {"softmax in single operations": _each(plain)}
    left_out: dict[str, str] = {}
    if device.type == "cpu":
        ways["softmax, fewer copies"] = _each(
            lambda qkv: ExplicitAttention.apply(qkv, qkv.shape[-1] ** -0.5)  # type: ignore[no-untyped-call]
        )
    ways["SDPA, a call a group"] = _each(fused)
    if flash_varlen(device, dtype):
        ways["variable length, one call"] = lambda groups: variable(groups, sizes)
    else:
        left_out["variable length"] = "needs CUDA, 16 bits, Ampere and torch 2.11 or newer"
    if device.type == "cuda":
        ways["FlexAttention, one call"] = _flex(sizes, device)
    else:
        left_out["FlexAttention"] = "needs CUDA to have a backward pass"
    return ways, left_out


def _each(attention: Callable[[Tensor], Tensor]) -> Way:
    return lambda groups: [attention(qkv) for qkv in groups]


def plain(qkv_BN3HD: Tensor) -> Tensor:
    """As timm writes it."""
    q, k, v = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    shares = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1)
    mixed: Tensor = shares @ v
    return mixed.transpose(1, 2).flatten(2)


def fused(qkv_BN3HD: Tensor) -> Tensor:
    q, k, v = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def variable(groups: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """FlashAttention over one sequence of all crops, which are joined first."""
    from torch.nn.attention.varlen import varlen_attn

    qkv_T3HD = torch.cat([qkv.flatten(0, 1) for qkv in groups])
    ends, longest = sequence_ends(sizes, qkv_T3HD.device), max(tokens for _, tokens in sizes)
    q, k, v = qkv_T3HD.unbind(1)
    mixed = varlen_attn(q, k, v, ends, ends, longest, longest)
    assert isinstance(mixed, Tensor)
    return [mixed.flatten(1)]


def _flex(sizes: Sizes, device: torch.device) -> Way:
    """FlexAttention, compiled, with a block mask by crop."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lengths = torch.tensor([tokens for images, tokens in sizes for _ in range(images)], device=device)
    crop_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    total = len(crop_T)
    mask = create_block_mask(
        lambda b, h, q, k: crop_T[q] == crop_T[k], None, None, total, total, device=str(device), _compile=True
    )
    compiled = torch.compile(flex_attention, dynamic=False)

    def way(groups: list[Tensor]) -> list[Tensor]:
        q, k, v = torch.cat([qkv.flatten(0, 1) for qkv in groups])[None].permute(2, 0, 3, 1, 4).unbind(0)
        return [compiled(q, k, v, block_mask=mask)]

    return way


def _table(run: RunConfig, rows: list[dict[str, Any]], left_out: dict[str, str]) -> list[str]:
    cells = [
        [
            row["way"],
            f"{1e3 * row['seconds']['median']:.2f}",
            f"{1e3 * row['seconds']['min']:.2f} - {1e3 * row['seconds']['max']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['peak_gib']:.3f}",
        ]
        for row in rows
    ]
    what = f"{run.backbone.name}, one block's attention, batch {run.batch_size} of {crops_in_words(run)}, {run.precision}"
    lines = [what, *markdown(["forward and backward", "ms", "min - max", "speed-up", "memory GiB"], cells)]
    return lines + [f"{name} left out: {why}" for name, why in left_out.items()]
