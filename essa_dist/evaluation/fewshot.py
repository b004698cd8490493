"""Few-shot classification: a few images of each class are learnt, in many random draws.

``mean``: the class whose mean of unit-length features is nearest by cosine (Snell et al. 2017, arXiv:1703.05175, with
the normalisation of Wang et al. 2019, arXiv:1911.04623); ``logistic``: logistic regression on unit-length features.
Shapes: N bank members, S of them drawn, M test samples, C feature channels, K classes, D draws.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.evaluation.samples import Samples

METHODS = ("mean", "logistic")
STRENGTH = (
    10.0  # C of the logistic regression: few unit-length vectors want a weak penalty; our choice, not tuned
)


def draw_shots(bank: Samples, shots: int, *, seed: int) -> Tensor:
    """Rows of the bank, [S]: ``shots`` images of each class that it holds (all, where it has fewer).

    A class's images are of as many patients as can be, where patients are known. The same seed draws the same first
    images for any number of shots.
    """
    random = np.random.default_rng(seed)
    targets = bank.targets.cpu().numpy()
    patients = np.arange(len(targets)) if bank.patients is None else bank.patients.cpu().numpy()
    chosen = [
        _spread(random.permutation(np.flatnonzero(targets == label)), patients)[:shots]
        for label in np.unique(targets)
    ]
    return torch.from_numpy(np.concatenate(chosen))


def _spread(rows: NDArray[np.int64], patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """``rows`` with the first image of every patient in front, then the second ones, and so on."""
    by_patient = np.argsort(patients[rows], kind="stable")
    ordered = patients[rows][by_patient]
    start = np.maximum.accumulate(np.where(np.diff(ordered, prepend=-1) != 0, np.arange(len(rows)), 0))
    turn = np.empty_like(rows)
    turn[by_patient] = np.arange(len(rows)) - start
    return rows[np.argsort(turn, kind="stable")]


def fewshot_predictions(
    bank: Samples, test_MC: Tensor, *, shots: int, draws: int, seed: int = 0
) -> dict[str, Tensor]:
    """Predicted classes by method, int64 [D, M]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    unit_MC, found = F.normalize(test_MC, dim=1), dict[str, list[Tensor]]({name: [] for name in METHODS})
    with threadpool_limits(1):  # BLAS's threads only wait for each other at this size
        for draw in range(draws):
            rows = draw_shots(bank, shots, seed=seed * draws + draw).to(bank.targets.device)
            features_SC, labels_S = F.normalize(bank.features[rows], dim=1), bank.targets[rows]
            found["mean"].append(nearest_mean(features_SC, labels_S, unit_MC))
            logistic = LogisticRegression(C=STRENGTH, max_iter=1000)
            logistic.fit(features_SC.cpu().numpy(), labels_S.cpu().numpy())
            found["logistic"].append(torch.from_numpy(logistic.predict(unit_MC.cpu().numpy())))
    return {name: torch.stack([one.cpu() for one in predicted]) for name, predicted in found.items()}


def nearest_mean(features_SC: Tensor, labels_S: Tensor, test_MC: Tensor) -> Tensor:
    """Class of the mean that is nearest by cosine, [M]."""
    present = labels_S.unique()
    means_KC = torch.stack([features_SC[labels_S == label].mean(dim=0) for label in present])
    nearest_M: Tensor = present[(test_MC @ F.normalize(means_KC, dim=1).T).argmax(dim=1)]
    return nearest_M


def mean_and_interval(values_D: NDArray[np.float64]) -> tuple[float, float, tuple[float, float]]:
    """Mean, deviation and the 95 % t-interval of the mean over draws; of no width for a single draw."""
    from scipy import stats

    mean = float(values_D.mean())
    if len(values_D) < 2:
        return mean, 0.0, (mean, mean)
    deviation = float(values_D.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values_D) - 1)) * deviation / len(values_D) ** 0.5
    return mean, deviation, (mean - half, mean + half)
