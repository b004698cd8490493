"""A part of the bank to choose by: no patient is in both parts, and every class stays to be learnt."""

import torch
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.samples import Samples


def hold_out(bank: Samples, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to choose by, int64, ascending.

    With patients whole patients are held out, else images; class by class, the rarest first, at least one and never all
    of a class that has two. A patient of several classes is decided once. Raises ``UsageError`` where less than two
    patients (images) leave nothing to hold out.
    """
    groups_N = _groups(bank)
    random = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    seen: set[int] = set()
    members = [set(groups_N[rows].tolist()) for rows in _classes(bank)]
    for of_class in sorted((groups for groups in members if groups), key=len):
        fresh = sorted(of_class - seen)
        fresh = [fresh[i] for i in torch.randperm(len(fresh), generator=random).tolist()]
        wanted = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held |= set(fresh[: max(0, wanted - len(of_class & held))])
        seen |= of_class
    is_held = torch.tensor([group in held for group in groups_N.tolist()])
    learn, check = (~is_held).nonzero().flatten(), is_held.nonzero().flatten()
    if not len(learn) or not len(check):
        raise UsageError(
            f"the bank's {len(groups_N)} images are of too few patients (or images of a class) to hold some out: "
            "a probe that chooses its settings needs at least 2 of a class, so use another bank, or linear"
        )
    device = bank.features.device
    return learn.to(device), check.to(device)


def _groups(bank: Samples) -> Tensor:
    """Of each image, its patient; or the image itself, where patients are not known."""
    return torch.arange(len(bank.targets)) if bank.patients is None else bank.patients.cpu()


def _classes(bank: Samples) -> list[Tensor]:
    """Rows of each class; where an image may have several, also of the images that have none."""
    targets = bank.targets.cpu()
    if not bank.is_multilabel:
        return [(targets == label).nonzero().flatten() for label in targets.unique()]
    flags = [*(targets == 1).T, ~(targets == 1).any(dim=1)]
    return [flag.nonzero().flatten() for flag in flags]
