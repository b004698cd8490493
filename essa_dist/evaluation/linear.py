"""Linear probe: multinomial logistic regression on standardised, frozen features.

Shapes: N bank members, M test samples, C feature channels.
"""

import logging

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)

STRENGTHS = np.logspace(-4, 0, 9)  # of C, scikit-learn's inverse L2 penalty; two per decade
FOLDS = 5

Features = NDArray[np.float32]
Indices = NDArray[np.int64]


def linear_predictions(
    bank_NC: Features, bank_labels_N: Indices, test_MC: Features, *, seed: int = 0
) -> tuple[Indices, float]:
    """Predicted class index of every test sample, [M], and the C chosen by cross-validation in the bank.

    Among equally good values of C the strongest penalty wins. Raises ``UsageError`` if the bank holds
    fewer than two classes.
    """
    if len(np.unique(bank_labels_N)) < 2:
        raise UsageError(
            "the bank holds members of 1 class, a linear probe needs at least 2: use another bank"
        )
    # Threads of BLAS only wait for each other at this size (two took 40 times as long on two busy cores).
    with threadpool_limits(1):
        probe = _fit(bank_NC, bank_labels_N, seed)
        return probe.predict(test_MC), float(probe.get_params()["classify__C"])


def _fit(bank_NC: Features, labels_N: Indices, seed: int) -> Pipeline:
    probe = Pipeline([("standardise", StandardScaler()), ("classify", LogisticRegression(max_iter=1000))])
    splits = folds(labels_N, seed)
    if splits:
        search = GridSearchCV(probe, {"classify__C": STRENGTHS}, cv=splits)
        return search.fit(bank_NC, labels_N).best_estimator_
    strength = float(np.median(STRENGTHS))
    logger.warning("no class of the bank has two members: C=%.3g is a guess, not cross-validated", strength)
    return probe.set_params(classify__C=strength).fit(bank_NC, labels_N)


def folds(labels_N: Indices, seed: int) -> list[tuple[Indices, Indices]]:
    """Stratified (train, validation) indices; the only member of a class always trains.

    As many folds as the smallest class that can be split has members, at most ``FOLDS``; none if no
    class has two members.
    """
    members_N = np.bincount(labels_N)[labels_N]
    lone, shared = np.flatnonzero(members_N < 2), np.flatnonzero(members_N >= 2)
    if not len(shared):
        return []
    count = int(min(FOLDS, members_N[shared].min()))
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    splits = splitter.split(shared, labels_N[shared])
    return [(np.concatenate([shared[train], lone]), shared[valid]) for train, valid in splits]
