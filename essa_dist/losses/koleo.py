"""KoLeo: spread features uniformly. Source: Sablayrolles et al., arXiv:1806.03198; as in DINOv2.

Shapes: B images of all processes, C features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from essa_dist.distributed.collectives import all_gather

EPS = 1e-8
SAME = 1e-5
"""Distance below which images are the same to fp32 features, as black ones are."""


def koleo_loss(features_BC: Tensor) -> Tensor:
    """``-mean log ||x_i - nearest neighbour of x_i||`` of L2-normalised features, in fp32.

    Neighbours are sought among the images of all processes, so the value does not depend on how a batch
    is spread over ranks (DINOv2 looks at its own rank only; on one process the two are the same). Images that are
    the same count in the value and give no gradient.
    Raises ValueError below two images, where no neighbour exists.
    """
    with torch.autocast(features_BC.device.type, enabled=False):  # half precision gives inf (dinov2#492)
        x_BC = all_gather(F.normalize(features_BC.float(), eps=EPS, dim=-1))
        if len(x_BC) < 2:
            raise ValueError(f"KoLeo compares images with each other and needs a batch of 2, got {len(x_BC)}")
        with torch.no_grad():
            nearest_B = (x_BC @ x_BC.T).fill_diagonal_(-1).argmax(dim=1)
        distance_B = F.pairwise_distance(x_BC, x_BC[nearest_B], eps=EPS)
        # A gradient would be 1 / distance, which fp16 can't hold, in a direction that is rounding.
        distance_B = torch.where(distance_B < SAME, distance_B.detach(), distance_B)
        return -torch.log(distance_B + EPS).mean()


def koleo_and_gradient(features_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient [B, C] fp32 by the features of this process as ``backward`` would leave it there."""
    with torch.enable_grad():
        x_BC = features_BC.detach().float().requires_grad_()
        loss = koleo_loss(x_BC)
    (gradient_BC,) = torch.autograd.grad(loss, x_BC)
    return loss.detach(), gradient_BC
