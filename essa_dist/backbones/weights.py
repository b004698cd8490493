"""Reading pretrained weights: from the hub through timm, from a file, or the file embedded in ``assets/``."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from essa_dist.backbones.channels import adapt_patch_embed, adapt_statistics
from essa_dist.backbones.formats import FORMATS, find_format
from essa_dist.backbones.formats.files import read_state, weights_file
from essa_dist.backbones.formats.fitting import fit
from essa_dist.backbones.formats.huggingface_config import fit_config, pixel_statistics, read_config
from essa_dist.backbones.formats.names import Notes
from essa_dist.backbones.formats.prefixes import take_trunk
from essa_dist.backbones.formats.report import LoadReport
from essa_dist.backbones.vit import Backbone, shipped_statistics
from essa_dist.errors import WeightsError

log = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "weights"
EMBEDDED = {"vit_tiny_patch16_224": ASSETS / "vit_tiny_patch16_224_in1k_fp16.safetensors"}
"""timm architecture -> file in the repository, for machines that can't reach the hub."""

OFFLINE_HELP = (
    "to work offline, fetch the file on a connected machine with "
    "`huggingface-cli download timm/{name}` and pass backbone.weights=/path/to/model.safetensors; "
    "for untrained weights say backbone.weights=random"
)

PATCHES = "patch_embed.proj"

__all__ = [
    "LoadReport",
    "file_sha256",
    "fill",
    "load_into",
    "misfits",
    "other_trunk",
    "parameters_sha256",
    "read_state",
    "say_once",
    "weights_sha256",
]

said: set[str] = set()


def say_once(level: int, text: str) -> None:
    """Log ``text``, once in a process: the demo loads its model six times, and its origin is news once."""
    if text not in said:
        said.add(text)
        log.log(level, text)


def load_into(backbone: Backbone, path: Path, *, allow_missing: Sequence[str] = ()) -> LoadReport:
    """Fill trunk and mask token from a file or folder in any layout of ``formats``; log and return what was done.

    Modules behind the trunk are dropped, position and patch embeddings resized by timm's rule, the patch embedding
    fitted to the trunk's channels, the epsilon of norms and the pixel statistics taken from configs of transformers
    beside the file. A trunk tensor that is missing and not in ``allow_missing`` (names or patterns), one that is
    unexpected, and one of another shape is a WeightsError.
    """
    return fill(backbone, read_state(path), source=path, allow_missing=allow_missing)


def fill(
    backbone: Backbone, held: dict[str, Tensor], *, source: Path | str, allow_missing: Sequence[str] = ()
) -> LoadReport:
    """``load_into`` for tensors that are read already; ``source`` says from where."""
    notes, statistics = Notes(), shipped_statistics(backbone.vit)
    try:
        trunk = take_trunk(held, notes)
        layout = find_format(trunk)
        remarks: tuple[str, ...] = ()
        if layout == "transformers" and isinstance(source, Path):
            remarks = fit_config(read_config(source), backbone.vit)
            statistics = pixel_statistics(source) or statistics
        named = FORMATS[layout].to_timm(trunk, backbone.vit, notes)
        # What may be resized is; blocks become fp32 as they are copied, for of half a ViT-g that alone is 4.5 GB.
        state = {name: t if name.startswith("blocks.") else t.float() for name, t in named.items()}
        mask = state.pop("mask_token", None)
        state = _fit_channels(fit(state, backbone.vit, notes), backbone, statistics, notes)
    except WeightsError as error:
        raise WeightsError(f"weights file {source}: {error}") from error
    own = backbone.vit.state_dict()
    missing = [name for name in own if name not in state]
    allowed = [name for name in missing if any(fnmatch(name, pattern) for pattern in allow_missing)]
    wrong = misfits({name: t for name, t in own.items() if name not in allowed}, state, here=backbone.name)
    if wrong:
        hint = (
            "" if missing == allowed else "; backbone.allow_missing=[...] lets named tensors start at random"
        )
        raise WeightsError(f"weights file {source} does not fit {backbone.name}: {wrong}{hint}")
    backbone.vit.load_state_dict(state, strict=False)
    _fill_mask_token(backbone, mask, notes)
    report = LoadReport(
        format=layout,
        loaded=len(state),
        renamed=tuple(notes.renamed),
        resized=tuple(notes.resized),
        dropped=tuple(notes.dropped),
        missing=tuple(allowed),
        remarks=remarks,
    )
    _say(report, f"weights of {backbone.name} read from {source}")
    return report


def _fit_channels(
    state: dict[str, Tensor],
    backbone: Backbone,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    notes: Notes,
) -> dict[str, Tensor]:
    """The patch embedding for the trunk's channels; the backbone's pixel statistics and rule go with it."""
    backbone.mean, backbone.std = adapt_statistics(*statistics, backbone.in_chans)
    weight, bias = state[f"{PATCHES}.weight"], state.get(f"{PATCHES}.bias")
    if weight.shape[1] == backbone.in_chans:
        return state
    fitted, bias, mean, std, rule = adapt_patch_embed(weight, bias, *statistics, backbone.in_chans)
    backbone.mean, backbone.std, backbone.channel_rule = mean, std, rule
    notes.resized.append((f"{PATCHES}.weight", tuple(weight.shape), tuple(fitted.shape), str(rule)))
    return state | {f"{PATCHES}.weight": fitted} | ({} if bias is None else {f"{PATCHES}.bias": bias})


def _fill_mask_token(backbone: Backbone, mask: Tensor | None, notes: Notes) -> None:
    if mask is None:
        return
    if mask.numel() == backbone.mask_token.numel():
        backbone.mask_token.data.copy_(mask.reshape(backbone.mask_token.shape))
    else:
        notes.dropped.append(("mask_token", f"{mask.numel()} wide, so not of this trunk"))


def _say(report: LoadReport, where: str) -> None:
    say_once(logging.INFO, f"{where}: {report}")
    for line in report.details():
        log.debug("%s", line)
    if report.missing:
        say_once(
            logging.WARNING,
            f"{where}: {len(report.missing)} tensors start from RANDOM values: {', '.join(report.missing[:4])}",
        )


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor], *, here: str) -> str:
    """What keeps ``found`` from filling ``own``, tensor by tensor, the first few of it; empty where it fits."""
    problems = [f"missing {key}" for key in own if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in own]
    problems += [
        f"{key} is {list(found[key].shape)}, {here} needs {list(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    return "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")


def other_trunk(saved: Mapping[str, Any], found_sha256: str) -> str:
    """That a checkpoint's ``saved`` state is of another trunk than the one with this hash; empty where it is the same.

    A checkpoint holds no frozen weight: put over another trunk it would give features of no meaning.
    """
    if saved["trunk_sha256"] == found_sha256:
        return ""
    return (
        f"trained on other pretrained weights ({saved['weights_source']}, trunk hash {saved['trunk_sha256'][:12]}, "
        f"now {found_sha256[:12]}): give backbone.weights the original file"
    )


def weights_sha256(path: Path) -> str:
    """Hash of the weights at ``path``: of the file, of a folder's one file, or of the hashes of a folder's parts."""
    file = weights_file(path) if path.is_dir() else path
    if file is None or not file.name.endswith(".index.json"):
        return file_sha256(file or path)
    parts = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    return hashlib.sha256("".join(file_sha256(path / part) for part in parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parameters_sha256(module: nn.Module) -> str:
    """Hash over names and fp32 bytes of all parameters, in order of name: which trunk this is."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
