"""Reading pretrained weights: from the hub through timm, from a file, or the file embedded in ``assets/``."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

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


said: set[str] = set()


def say_once(level: int, text: str) -> None:
    """Log ``text``, once in a process: the demo loads its model six times, and its origin is news once."""
    if text not in said:
        said.add(text)
        log.log(level, text)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file read with ``weights_only=True`` (never plain pickle).

    Raises WeightsError naming the file when it is missing, damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"weights file {path} can't be read: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"weights file {path} is not a plain tensor file and was not loaded: {first}"
        ) from error
    for wrapper in ("model", "state_dict", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"weights file {path} does not hold a flat dictionary of tensors")
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def load_into(vit: VisionTransformer, mask_token: Tensor, path: Path, *, name: str) -> None:
    """Load timm's or DINOv2's own names into ``vit`` (and the mask token, which timm does not know), strictly.

    A classifier head is dropped; position embeddings of another grid are resized by timm's rule; anything else
    that is missing, unexpected or of another shape is a WeightsError that lists it.
    """
    state = read_state(path)
    mask = state.pop("mask_token", None)
    if mask is not None and mask.numel() == mask_token.numel():
        mask_token.data.copy_(mask.reshape(mask_token.shape))
    state = {
        k: v.float()
        for k, v in state.items()
        if not k.startswith(("head.", "fc_norm.", "dino_head.", "ibot_head."))
    }
    if "patch_embed.proj.weight" not in state:
        raise WeightsError(
            f"weights file {path} is not a vision transformer: it has no patch_embed.proj.weight"
        )
    if mask is not None:
        state["mask_token"] = mask  # timm recognises DINOv2's files by it
    state = checkpoint_filter_fn(state, vit)
    wrong = misfits(vit.state_dict(), state, here=name)
    if wrong:
        raise WeightsError(f"weights file {path} does not fit {name}: {wrong}")
    vit.load_state_dict(state)
    say_once(logging.INFO, f"weights of {name} read from {path} ({len(state)} tensors)")


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
