"""timm's own names, which also fine-tuned MAE checkpoints and our exports have."""

from typing import Any

from torch import Tensor

from essa_dist.backbones.formats.names import Notes

BEHIND = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "dino_head.", "ibot_head.")
"""Modules behind the trunk."""


def matches(state: dict[str, Tensor]) -> bool:
    """Whether the patch embedding has timm's name."""
    return "patch_embed.proj.weight" in state


def to_timm(state: dict[str, Tensor], vit: Any, notes: Notes) -> dict[str, Tensor]:
    """``state`` without what is behind the trunk.

    A trunk whose features are averaged has one norm behind the average (``fc_norm``) and none on its tokens. That
    norm is taken for the tokens here. A norm before an average is not the same as one behind it (the mean of
    normalised tokens against the normalised mean), so pooled features differ from those of the fine-tuned model;
    there is no norm for tokens that would be closer.
    """
    out = {}
    for name, tensor in state.items():
        alone = name.startswith("fc_norm.") and name.removeprefix("fc_") not in state
        if alone and hasattr(vit.norm, "weight"):
            out[name.removeprefix("fc_")] = tensor
            notes.renamed.append((name, name.removeprefix("fc_")))
        elif name.startswith(BEHIND):
            notes.dropped.append((name, "behind the trunk"))
        else:
            out[name] = tensor
    return out
