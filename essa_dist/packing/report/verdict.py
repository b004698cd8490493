"""What a user must look at, in sentences."""

import numpy as np

from essa_dist.data.index import NONE
from essa_dist.data.manifest import UNLABELLED
from essa_dist.packing.guards.table import side_numbers
from essa_dist.packing.report.record import Packed

FEW = 10
"""Samples: a class with fewer in a split is hardly learnt, or hardly measured."""
IMBALANCE = 20
"""Times: a class with this many times the samples of another one of its split is worth knowing of."""
MUCH_LEFT_OUT = 0.01
"""Share of samples in quarantine that is worth a look."""


def concerns(packed: Packed) -> list[str]:
    """One sentence for each thing to look at, the gravest first."""
    return [
        *_patients(packed),
        *_duplicates(packed),
        *_privacy(packed),
        *_quarantine(packed),
        *_classes(packed),
        *_provenance(packed),
    ]


def verdict(concerns: list[str]) -> str:
    """The line on top."""
    if not concerns:
        return "Nothing to look at: no leak between splits, no privacy finding, nothing left out."
    return f"{_things(len(concerns))} to look at before training:"


def _things(count: int) -> str:
    return "One thing" if count == 1 else f"{count} things"


def patients_across(packed: Packed) -> int:
    """How many patients have samples in two splits that must not share any."""
    patient = np.asarray(packed.index.patient, np.int64)
    known = patient != NONE
    splits = max(len(packed.manifest.splits), 1)
    sides = side_numbers(packed.manifest.splits)
    places = np.unique(patient[known] * splits + sides[packed.split[known]])
    return int((np.unique(places // splits, return_counts=True)[1] > 1).sum())


def _patients(packed: Packed) -> list[str]:
    if len(set(side_numbers(packed.manifest.splits))) < 2:
        return []
    across = patients_across(packed)
    if across:
        return [f"{across:,} patients are in more than one split: what is learnt of them is tested on them."]
    unknown = int((np.asarray(packed.index.patient) == NONE).sum())
    if unknown:
        share = "no sample" if unknown == len(packed.index) else f"{unknown:,} samples"
        text = "is known for" if share == "no sample" else "is not known for"
        return [f"The patient {text} {share}: whether one is in two splits can't be told."]
    return []


def _duplicates(packed: Packed) -> list[str]:
    found = packed.findings
    if found is None:
        return ["Duplicates and privacy have not been examined: there is no findings.json."]
    sentences = []
    for kind, pairs in (("the same pixels", found.exact), ("nearly the same picture", found.near)):
        if pairs is not None and pairs.across:
            sentences.append(f"{pairs.across:,} pairs in two splits show {kind}.")
    return [*sentences, *(f"{note[:1].upper()}{note[1:]}." for note in found.notes)]


def _privacy(packed: Packed) -> list[str]:
    flags = packed.findings.flags if packed.findings else {}
    if not flags:
        return []
    kinds = ", ".join(f"{kind} ({one.count:,})" for kind, one in list(flags.items())[:4])
    more = f" and {len(flags) - 4} more" if len(flags) > 4 else ""
    return [f"Headers or pixels of the source files may identify patients: {kinds}{more}."]


def _quarantine(packed: Packed) -> list[str]:
    left_out = sum(packed.manifest.skipped.values())
    total = left_out + len(packed.index)
    if not left_out or left_out < MUCH_LEFT_OUT * total:
        return []
    return [f"{left_out:,} of {total:,} samples were left out ({100 * left_out / total:.1f} %)."]


def _classes(packed: Packed) -> list[str]:
    """Classes missing or rare in a split that has labels."""
    sentences = []
    for split in packed.manifest.splits:
        counts = packed.manifest.counts.get(split, {})
        labelled = {name: counts.get(name, 0) for name in packed.manifest.classes}
        if not any(labelled.values()):
            continue
        few = [f"{name} ({count})" for name, count in labelled.items() if count < FEW]
        if few:
            listed = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
            sentences.append(f"Split {split} has fewer than {FEW} samples of {listed}.")
        elif max(labelled.values()) >= IMBALANCE * min(labelled.values()):
            ratio = max(labelled.values()) / min(labelled.values())
            rare = min(labelled, key=lambda name: labelled[name])
            sentences.append(
                f"Split {split} is unbalanced: its largest class has {ratio:.0f} times the samples of {rare}."
            )
        if counts.get(UNLABELLED) and packed.manifest.label_kind == "single":
            sentences.append(f"{counts[UNLABELLED]:,} samples of split {split} have no label.")
    return sentences


def _provenance(packed: Packed) -> list[str]:
    lacking = [name for name in ("source", "licence") if not getattr(packed.manifest, name)]
    return [f"The manifest doesn't say the {' or the '.join(lacking)} of the images."] if lacking else []
