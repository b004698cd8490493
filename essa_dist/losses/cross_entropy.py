"""Cross-entropies between teacher and student distributions over prototypes.

Source: DINO, arXiv:2104.14294, eq. 1; iBOT, arXiv:2111.07832, eq. 2; weights as in DINOv2, arXiv:2304.07193.
Shapes: S student crops, T teacher crops, B images, M masked patches, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dino_loss(student_SBK: Tensor, teacher_TBK: Tensor, *, temp: float, same_crops: bool) -> Tensor:
    """Sum over crop pairs of the image-mean of ``-sum_k teacher log softmax(student / temp)``.

    ``student_SBK`` are logits, ``teacher_TBK`` probabilities. With ``same_crops`` crop s of the student
    is crop s of the teacher, and those pairs are left out: a view is never its own target.
    """
    log_p_SBK = F.log_softmax(student_SBK.float() / temp, dim=-1)
    pairs_ST = -torch.einsum("sbk,tbk->st", log_p_SBK, teacher_TBK) / student_SBK.shape[1]
    if same_crops:
        pairs_ST = pairs_ST * (1 - torch.eye(*pairs_ST.shape, device=pairs_ST.device))
    return pairs_ST.sum()


def ibot_loss(
    student_MK: Tensor, teacher_MK: Tensor, weight_M: Tensor, *, temp: float, n_images: int
) -> Tensor:
    """Cross-entropy of masked patches, each image counting once: ``weight_M`` is 1 / (masked patches of its image).

    ``n_images`` counts all crops of this process, also those without a mask, as in DINOv2. No masked patch gives 0.
    """
    log_p_MK = F.log_softmax(student_MK.float() / temp, dim=-1)
    per_patch_M = -(teacher_MK * log_p_MK).sum(dim=-1)
    return (per_patch_M * weight_M).sum() / n_images
