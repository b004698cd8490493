"""Linear probe: multinomial logistic regression on standardised, frozen features; where an image may have several
classes, a logistic regression for each of them.

Shapes: N bank members, M test samples, C feature channels, K classes. scikit-learn is imported where it is used: that
takes a CPU second, which every process of a run would spend.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.errors import UsageError
from essa_dist.evaluation.samples import Samples

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-4, 0, 9)  # of C, scikit-learn's inverse L2 penalty; two per decade
FOLDS = 5
THREADS = (
    1  # those of BLAS only wait for each other at this size (two took 40 times as long on two busy cores)
)

Features = NDArray[np.float32]
Indices = NDArray[np.int64]


def linear_probabilities(
    bank: Samples, test_MC: Tensor, *, num_classes: int, seed: int = 0, strength: float | None = None
) -> tuple[Tensor, float | list[float | None]]:
    """Probabilities of the test samples, fp64 [M, K] on the CPU, and the C: ``strength``, or else chosen in the bank.

    Where an image may have several classes each has its own C, chosen by AUROC in folds that share no patient; a class
    of which the bank doesn't know both kinds of images gets its share in the bank, and None. Among equally good values
    the strongest penalty wins. Raises ``UsageError`` if the bank holds fewer than two classes, or no class can be learnt.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    bank_NC, test = bank.features.cpu().numpy(), test_MC.cpu().numpy()
    targets = bank.targets.cpu().numpy()
    patients = None if bank.patients is None else bank.patients.cpu().numpy()
    with threadpool_limits(THREADS):
        if not bank.is_multilabel:
            probe = _fit(bank_NC, targets, seed, strength=strength)
            known_MK = probe.predict_proba(test)
            found_MK = np.zeros((len(test), num_classes))
            found_MK[:, probe.classes_] = known_MK
            return torch.from_numpy(found_MK), float(probe.get_params()["classify__C"])
        columns = [_one_class(bank_NC, flags_N, patients, test, seed, strength) for flags_N in targets.T]
    strengths = [strength for _, strength in columns]
    if not any(strengths):
        raise UsageError(
            "the bank knows no class in both states (present and absent): nothing can be learnt, use another bank"
        )
    return torch.from_numpy(np.stack([share_M for share_M, _ in columns], axis=1)), strengths


def _one_class(
    bank_NC: Features,
    flags_N: Features,
    patients_N: Indices | None,
    test_MC: Features,
    seed: int,
    strength: float | None,
) -> tuple[NDArray[np.float64], float | None]:
    known_N = flags_N >= 0
    flags = flags_N[known_N].astype(np.int64)
    if len(np.unique(flags)) < 2:
        return np.full(len(test_MC), flags.mean() if len(flags) else 0.0), None
    patients = None if patients_N is None else patients_N[known_N]
    probe = _fit(bank_NC[known_N], flags, seed, "roc_auc", patients, strength)
    return probe.predict_proba(test_MC)[:, 1], float(probe.get_params()["classify__C"])


def _fit(
    bank_NC: Features,
    labels_N: Indices,
    seed: int,
    scoring: str | None = None,
    patients_N: Indices | None = None,
    strength: float | None = None,
) -> "Pipeline":
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels_N)) < 2:
        raise UsageError(
            "the bank holds members of 1 class, a linear probe needs at least 2: use another bank"
        )
    probe = Pipeline([("standardise", StandardScaler()), ("classify", LogisticRegression(max_iter=1000))])
    if strength is not None:
        return probe.set_params(classify__C=strength).fit(bank_NC, labels_N)
    splits = folds(labels_N, seed) if patients_N is None else patient_folds(labels_N, patients_N, seed)
    if splits:
        search = GridSearchCV(probe, {"classify__C": STRENGTHS}, cv=splits, scoring=scoring)
        return search.fit(bank_NC, labels_N).best_estimator_
    guess = float(np.median(STRENGTHS))
    logger.warning("too few members of a class in the bank: C=%.3g is a guess, not cross-validated", guess)
    return probe.set_params(classify__C=guess).fit(bank_NC, labels_N)


def patient_folds(labels_N: Indices, patients_N: Indices, seed: int) -> list[tuple[Indices, Indices]]:
    """(train, validation) indices that share no patient, with both classes 0 and 1 on either side; at most ``FOLDS``."""
    from sklearn.model_selection import StratifiedGroupKFold

    most = min(len(np.unique(patients_N[labels_N == label])) for label in (0, 1))
    if most < 2:
        return []
    splitter = StratifiedGroupKFold(min(FOLDS, most), shuffle=True, random_state=seed)
    splits = splitter.split(labels_N, labels_N, patients_N)
    return [
        (train, valid)
        for train, valid in splits
        if len(np.unique(labels_N[train])) == len(np.unique(labels_N[valid])) == 2
    ]


def folds(labels_N: Indices, seed: int) -> list[tuple[Indices, Indices]]:
    """Stratified (train, validation) indices; the only member of a class always trains.

    As many folds as the smallest class that can be split has members, at most ``FOLDS``; none if no
    class has two members.
    """
    from sklearn.model_selection import StratifiedKFold

    members_N = np.bincount(labels_N)[labels_N]
    lone, shared = np.flatnonzero(members_N < 2), np.flatnonzero(members_N >= 2)
    if not len(shared):
        return []
    count = int(min(FOLDS, members_N[shared].min()))
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    splits = splitter.split(shared, labels_N[shared])
    return [(np.concatenate([shared[train], lone]), shared[valid]) for train, valid in splits]
