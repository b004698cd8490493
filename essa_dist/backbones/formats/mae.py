"""Masked autoencoders as their own code saves them: MAE, CXR-MAE and MRM, from before fine-tuning.

The encoder has timm's names, as the code builds on timm. Beside it are an image decoder (``decoder_*``), whose
``mask_token`` has the decoder's width (512 in MAE, in MRM 768 as the trunk) and is never the trunk's, and in MRM a
decoder of reports (``bert_encoder``, ``bert_mlp``). Fine-tuned checkpoints have a classifier only: timm's layout.
"""

from typing import Any

from torch import Tensor

from essa_dist.backbones.formats.names import Notes

DECODERS = {
    "decoder_": "MAE's image decoder",
    "mask_token": "the image decoder's, not the trunk's",
    "bert_encoder.": "MRM's report decoder",
    "bert_mlp.": "MRM's report decoder",
}


def matches(state: dict[str, Tensor]) -> bool:
    """Whether a decoder is there."""
    return "decoder_embed.weight" in state or "decoder_pos_embed" in state


def to_timm(state: dict[str, Tensor], vit: Any, notes: Notes) -> dict[str, Tensor]:
    """The encoder's tensors, which have timm's names."""
    out = {}
    for name, tensor in state.items():
        reason = next((why for start, why in DECODERS.items() if name.startswith(start)), None)
        if reason is None:
            out[name] = tensor
        else:
            notes.dropped.append((name, reason))
    return out
