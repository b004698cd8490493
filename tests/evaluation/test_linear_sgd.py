"""The SGD probe's promises: heads trained together are those trained alone, chosen without the test set."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.linear_sgd import apply_heads, auroc, fit_heads, linear_sgd
from essa_dist.evaluation.samples import Samples

N, C, K = 300, 6, 3


def clouds(n: int = N, *, seed: int = 0, spread: float = 1.0) -> Samples:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (n,), generator=random)
    centres = 2 * torch.eye(K, C)
    return Samples(centres[labels] + spread * torch.randn(n, C, generator=random), labels)


def flags(samples: Samples) -> Samples:
    """Two labels by the sign of two channels; of every fifth image the second is not known."""
    targets = (samples.features[:, :2] > 0.5).float()
    targets[::5, 1] = -1
    return samples._replace(targets=targets)


def by_autograd(bank: Samples, rate: float, decay: float, steps: int) -> Tensor:
    """One head, by torch's SGD on the same batch: the whole bank."""
    head = torch.nn.Linear(C, bank.targets.shape[1] if bank.is_multilabel else K)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": decay}, {"params": [head.bias], "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    for step in range(steps):
        falling = 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * falling
        logits = head(bank.features)
        if bank.is_multilabel:
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, bank.targets.clamp(min=0), reduction="none"
            )
            loss = (each * (bank.targets >= 0)).sum() / len(logits)
        else:
            loss = torch.nn.functional.cross_entropy(logits, bank.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head(bank.features).detach()


@pytest.mark.parametrize("several", [False, True])
def test_heads_trained_together_are_those_that_autograd_trains_alone(several: bool) -> None:
    bank = flags(clouds(200)) if several else clouds(200)  # one batch, so the order of images is no matter
    grid = [(0.1, 0.0), (0.01, 0.0), (0.1, 0.3), (3.0, 0.01)]
    heads = fit_heads(bank, grid, num_classes=2 if several else K, steps=25)
    for logits, (rate, decay) in zip(apply_heads(heads, bank.features), grid, strict=True):
        torch.testing.assert_close(logits, by_autograd(bank, rate, decay, 25), rtol=1e-3, atol=1e-4)


def test_it_finds_what_logistic_regression_finds() -> None:
    bank, test = clouds(seed=0), clouds(seed=1)
    head = linear_sgd(bank, test.features, num_classes=K, steps=300)
    right = (head.probabilities.argmax(dim=1) == test.targets).float().mean()
    oracle = LogisticRegression().fit(bank.features, bank.targets).score(test.features, test.targets)
    assert abs(float(right) - oracle) < 0.02
    torch.testing.assert_close(head.probabilities.sum(dim=1), torch.ones(N))


def test_of_several_labels_each_gets_a_probability_of_its_own() -> None:
    bank, test = flags(clouds(seed=0)), flags(clouds(seed=1))
    head = linear_sgd(bank, test.features, num_classes=2, steps=300)
    for label in (0, 1):
        known = test.targets[:, label] >= 0
        assert roc_auc_score(test.targets[known, label], head.probabilities[known, label]) > 0.97


def test_channels_of_any_scale_are_learnt_alike() -> None:
    bank, test = clouds(seed=0), clouds(seed=1)
    scale, shift = torch.logspace(-3, 3, C), 100 * torch.arange(C)
    plain = linear_sgd(bank, test.features, num_classes=K, steps=50).probabilities
    bent = bank._replace(features=bank.features * scale + shift)
    torch.testing.assert_close(
        linear_sgd(bent, test.features * scale + shift, num_classes=K, steps=50).probabilities,
        plain,
        rtol=0,
        atol=0.02,  # fp32 beside a shift of a million deviations
    )


def test_a_rate_that_diverges_is_not_chosen() -> None:
    bank = clouds()
    head = linear_sgd(
        bank, bank.features, num_classes=K, learning_rates=(1e38, 0.01), weight_decays=(0.5,), steps=40
    )
    assert head.learning_rate == 0.01


def test_the_seed_decides_everything() -> None:
    bank = clouds(spread=2.0)
    first, again, other = (
        linear_sgd(bank, bank.features, num_classes=K, steps=20, seed=s).probabilities for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_bank_from_which_nothing_can_be_held_out_is_refused() -> None:
    bank = Samples(torch.randn(2, C), torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="needs at least 2 of a class"):
        linear_sgd(bank, bank.features, num_classes=2)


def test_area_under_the_curve_is_scikit_learns_also_with_ties() -> None:
    random = np.random.default_rng(0)
    score, truth = random.integers(0, 6, 80).astype(np.float32), random.random(80) < 0.3
    found = auroc(torch.from_numpy(score), torch.from_numpy(truth))
    assert float(found) == pytest.approx(roc_auc_score(truth, score))
    assert auroc(torch.from_numpy(score), torch.zeros(80, dtype=torch.bool)).isnan()
