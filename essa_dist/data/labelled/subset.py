"""Which labelled samples are trained on: a fraction, or k of each class; drawn by a seed, smaller ones inside larger.

Shapes: n samples, G groups (patients, or single images), K kinds (each class, samples of none), P patterns (different
rows of counts).
"""

import logging

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.labelled.labels import Labels, mask_pixels
from essa_dist.data.plan import stable_seed
from essa_dist.data.shards import PackedImages
from essa_dist.data.shares import rarest_first, share_out
from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)

Numbers = NDArray[np.int64]


def choose_subset(
    images: PackedImages,
    labels: Labels,
    *,
    fraction: float = 1.0,
    shots: int | None = None,
    seed: int = 0,
) -> Numbers:
    """Ascending numbers of the samples of ``images`` that are trained on; those without a label never are.

    ``fraction``: of the labelled samples, by whole patients where these are known, in the proportions of the classes,
    at least one of each. ``shots`` instead: this many of each class (a sample of several classes counts for all), from
    as many patients as there are. Images without any class, or masks of background alone, are a class of their own.
    What a smaller fraction or fewer shots choose is in what more choose with the same seed.
    For masks this reads them all, unless everything is chosen; a fraction heeds class labels beside the masks (stains,
    devices) too. Raises UsageError where less than 2 are left.
    """
    if shots is not None and fraction != 1:
        raise UsageError(f"fraction={fraction:g} and shots={shots} contradict each other: choose one")
    labelled = np.flatnonzero(labels.known)
    if left_out := len(images) - len(labelled):
        logger.warning("%d of %d samples have no label and are left out", left_out, len(images))
    if shots is None and fraction == 1:
        chosen = labelled
    else:
        kinds = _kinds(images, labels, labelled, every=shots is None)
        patients = None if images.patients is None else images.patients[labelled]
        key = stable_seed("subset", seed, len(images))
        # Raw Philox output: the one stream that numpy promises not to change.
        shuffled = np.argsort(np.random.Philox(key=key).random_raw(len(labelled)), kind="stable")
        if shots is None:
            places = _fraction(kinds, patients, shuffled, fraction, seed)
        else:
            places = _shots(kinds, patients, shuffled, shots)
        chosen = labelled[np.sort(places)]
    if len(chosen) < 2:
        raise UsageError(
            f"{len(chosen)} of {len(labelled)} labelled samples would be trained on, at least 2 are needed: raise the "
            "fraction or the shots"
        )
    return chosen


def _kinds(images: PackedImages, labels: Labels, labelled: Numbers, *, every: bool) -> NDArray[np.bool_]:
    """[n, K]; kinds without samples are left out. ``every``: where images with masks have class labels too, these."""
    if labels.kind == "single":
        kinds = labels.values[labelled, None] == np.arange(len(labels.classes))
    elif labels.kind == "multi":
        kinds = labels.values[labelled] == 1
    else:
        kinds = mask_pixels(images, labels, labelled)[:, 1:] > 0
    kinds = np.column_stack([kinds, ~kinds.any(axis=1)])
    if every and labels.kind == "mask" and images.manifest.label_kind == "single":
        number = images.index.label[labelled]
        kinds = np.column_stack([kinds, number[:, None] == np.arange(len(images.classes))])
    return kinds[:, kinds.any(axis=0)]


def _fraction(
    kinds: NDArray[np.bool_],
    patients: NDArray[np.int32] | None,
    shuffled: Numbers,
    fraction: float,
    seed: int,
) -> Numbers:
    """The beginning of one order of all groups, of which every beginning has the proportions of the whole.

    The order: groups that give each kind its first sample; then halves that are alike, halves of these, and so on. Only
    the part that the cut is in is halved further, so the cost is that of a few sorts of all samples.
    """
    group_n, counts_GK = _grouped(kinds, patients, shuffled)
    total_K, wanted = counts_GK.sum(axis=0), fraction * len(kinds)
    first = _one_of_each(counts_GK)
    taken, held_K = [first], counts_GK[first].sum(axis=0)
    if held_K[-1] > wanted:
        logger.warning(
            "fraction=%g of %d samples is %d; %d are taken, so that each of %d classes is there",
            fraction,
            len(kinds),
            round(wanted),
            held_K[-1],
            kinds.shape[1],
        )
    block, path = np.setdiff1d(np.arange(len(counts_GK)), first), "0"
    while len(block) > 1:
        # What is taken is what comes before the block in the order, whatever the fraction: it may be made up for.
        half_K = total_K * (held_K[-1] + counts_GK[block, -1].sum() / 2) / total_K[-1] - held_K
        here, there = _halves(
            counts_GK[block], half_K, flip=stable_seed("half", seed, len(kinds), path) % 2 == 1
        )
        here_K = counts_GK[block[here]].sum(axis=0)
        if held_K[-1] + here_K[-1] > wanted:
            block, path = block[here], path + "0"
        else:
            taken.append(block[here])
            held_K = held_K + here_K
            block, path = block[there], path + "1"
    if len(block) and abs(held_K[-1] + counts_GK[block[0], -1] - wanted) < abs(held_K[-1] - wanted):
        taken.append(block)
    return np.flatnonzero(np.isin(group_n, np.concatenate(taken)))


def _grouped(
    kinds: NDArray[np.bool_], patients: NDArray[np.int32] | None, shuffled: Numbers
) -> tuple[Numbers, NDArray[np.float64]]:
    """[n] the group of each sample, numbered in shuffled order, and [G, K + 1] its samples of each kind, and all."""
    if patients is None:
        group_n = np.argsort(shuffled)
    else:
        _, first, number_n = np.unique(patients[shuffled], return_index=True, return_inverse=True)
        group_n = np.empty(len(shuffled), np.int64)
        group_n[shuffled] = np.argsort(np.argsort(first))[number_n.reshape(-1)]
    counts_GK = np.zeros((group_n.max() + 1, kinds.shape[1] + 1))
    np.add.at(counts_GK, group_n, np.column_stack([kinds, np.ones(len(kinds))]))
    return group_n, counts_GK


def _one_of_each(counts_GK: NDArray[np.float64]) -> Numbers:
    """Groups that have every kind among them: for each, rarest first, the smallest group that has it."""
    chosen: list[int] = []
    for kind in np.argsort(counts_GK[:, :-1].sum(axis=0), kind="stable"):
        if not counts_GK[chosen, kind].any():
            has = np.flatnonzero(counts_GK[:, kind])
            chosen.append(int(has[counts_GK[has, -1].argmin()]))
    return np.array(chosen, np.int64)


def _halves(
    counts_GK: NDArray[np.float64], half_K: NDArray[np.float64], *, flip: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[G] which groups are in the first half, and in the second; the first should have ``half_K`` samples.

    Groups of the same counts are dealt out in turns; what is left over is shared out by its kinds. ``flip`` says which
    half is served first, so that rare classes don't always come early.
    """
    _, pattern_G = np.unique(counts_GK, axis=0, return_inverse=True)
    sorted_ = np.argsort(pattern_G.reshape(-1), kind="stable")
    sizes = np.bincount(pattern_G.reshape(-1))
    starts = np.cumsum(sizes) - sizes
    side_G = np.empty(len(counts_GK), np.intp)
    side_G[sorted_] = (np.arange(len(counts_GK)) - np.repeat(starts, sizes)) % 2
    alone = np.sort(sorted_[(starts + sizes - 1)[sizes % 2 == 1]])  # the last of each odd number
    if len(alone):
        left_GK = counts_GK[alone]
        excess_K = left_GK.sum(axis=0) / 2 - (half_K - (counts_GK.sum(axis=0) - left_GK.sum(axis=0)) / 2)
        there_is = left_GK.any(axis=0)
        left_GK, excess_K = left_GK[:, there_is], excess_K[there_is]
        held_SK = np.stack([-excess_K, excess_K] if flip else [excess_K, -excess_K])
        chosen = share_out(left_GK, rarest_first(left_GK), np.array([0.5, 0.5]), held_SK)
        side_G[alone] = 1 - chosen if flip else chosen
    if (
        side_G.min() == side_G.max()
    ):  # a few odd groups may all be needed on one side, but halving must come to an end
        side_G = np.arange(len(side_G)) % 2
    return side_G == 0, side_G == 1


def _shots(
    kinds: NDArray[np.bool_], patients: NDArray[np.int32] | None, shuffled: Numbers, shots: int
) -> Numbers:
    """Round after round, each kind, rarest first, gets a sample if it has fewer than rounds have begun."""
    totals = kinds.sum(axis=0)
    if few := int((totals < shots).sum()):
        logger.warning("%d of %d classes have fewer than %d samples: all are taken", few, len(totals), shots)
    queues = [
        iter(_new_patients_first(shuffled[kinds[shuffled, kind]], patients).tolist())
        for kind in range(len(totals))
    ]
    held = np.zeros(len(totals), np.int64)
    chosen: set[int] = set()
    for begun in range(1, min(shots, int(totals.max())) + 1):
        for kind in np.argsort(totals, kind="stable"):
            for sample in queues[kind] if held[kind] < begun else ():
                if sample not in chosen:
                    chosen.add(sample)
                    held += kinds[sample]
                    break
    return np.array(sorted(chosen), np.int64)


def _new_patients_first(samples: Numbers, patients: NDArray[np.int32] | None) -> Numbers:
    """One sample of each patient, then the second ones, and so on."""
    if patients is None:
        return samples
    of = patients[samples]
    by_patient = np.argsort(of, kind="stable")
    _, starts, sizes = np.unique(of[by_patient], return_index=True, return_counts=True)
    turn = np.empty(len(samples), np.int64)
    turn[by_patient] = np.arange(len(samples)) - np.repeat(starts, sizes)
    return samples[np.argsort(turn, kind="stable")]
