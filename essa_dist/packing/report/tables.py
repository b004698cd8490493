"""The numbers of the page."""

import numpy as np

from essa_dist.data.index import NONE
from essa_dist.data.manifest import UNLABELLED
from essa_dist.packing.guards.findings import Duplicates
from essa_dist.packing.report.record import Packed
from essa_dist.report.section import Table


def identity(packed: Packed) -> Table:
    """What the set is and where it comes from."""
    manifest = packed.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    facts = {
        "name": manifest.name,
        "source": manifest.source or "not said",
        "licence": manifest.licence or "not said",
        "attribution": manifest.attribution or "not said",
        "samples": f"{len(packed.index):,}",
        "size": f"{megabytes(size)} in {len(manifest.shards):,} tar{'s' * (len(manifest.shards) != 1)}",
        "labels": {"none": "none", "single": "one class each", "multi": "any number of classes each"}[
            manifest.label_kind
        ],
        "masks": masks(packed),
        "depth": ", ".join(f"{bits} bits: {count:,}" for bits, count in sorted(manifest.bits.items())),
        "mean, shown (0..1)": " ".join(f"{value:.4f}" for value in manifest.mean),
        "standard deviation": " ".join(f"{value:.4f}" for value in manifest.std),
        "SHA-256 of the manifest": " ".join(packed.fingerprint[i : i + 16] for i in range(0, 64, 16)),
    }
    return Table("The set", ("fact", "value"), tuple(facts.items()))


def masks(packed: Packed) -> str:
    """How many samples have a mask, and of what."""
    if not packed.manifest.mask_classes:
        return "none"
    count = int((np.asarray(packed.index.mask_offset) != NONE).sum())
    return f"{count:,} of {', '.join(packed.manifest.mask_classes)}"


def megabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def splits(packed: Packed) -> Table:
    """Samples, patients and bytes of each split."""
    manifest = packed.manifest
    rows = []
    for split in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == split]
        patients = f"{manifest.patients[split]:,}" if split in manifest.patients else "not known"
        size = megabytes(sum(shard.bytes for shard in shards))
        count = manifest.samples.get(split, 0)
        share = f"{100 * count / max(len(packed.index), 1):.1f} %"
        rows.append((split, f"{count:,}", share, patients, f"{len(shards):,}", size))
    return Table("Splits", ("split", "samples", "share", "patients", "tars", "size"), tuple(rows))


def classes(packed: Packed) -> Table:
    """Samples of each class by split, with their share of the split."""
    manifest = packed.manifest
    rows = []
    for name in (*manifest.classes, UNLABELLED):
        counts = [manifest.counts.get(split, {}).get(name, 0) for split in manifest.splits]
        if name != UNLABELLED or any(counts):
            cells = [
                _share(n, manifest.samples.get(s, 0)) for n, s in zip(counts, manifest.splits, strict=True)
            ]
            rows.append((name, *cells, f"{sum(counts):,}"))
    caption = "Samples by class and split, and their share of the split"
    if manifest.label_kind == "multi":
        caption += " (a sample may have several classes, so that shares add up to more than 100 %)"
    return Table(caption, ("class", *manifest.splits, "all"), tuple(rows))


def unknown(packed: Packed) -> Table | None:
    """Where some labels of a multi-label set are not known: how many of each class."""
    labels = packed.index.labels
    if labels is None or not (labels == NONE).any():
        return None
    rows = [
        (name, *(f"{int((labels[:, i] == value).sum()):,}" for value in (1, 0, NONE)))
        for i, name in enumerate(packed.manifest.classes)
    ]
    return Table("Labels that are not known", ("class", "yes", "no", "not known"), tuple(rows))


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)" if total else "0"


def duplicates(packed: Packed) -> Table:
    """Pairs of each kind; ask only where there are findings."""
    assert packed.findings is not None
    kinds: list[tuple[str, Duplicates | None]] = [
        ("the same pixels", packed.findings.exact),
        ("nearly the same", packed.findings.near),
    ]
    rows = [
        (name, f"{one.across:,}", f"{one.inside:,}", f"{one.same_patient:,}", _by_splits(one))
        if one is not None
        else (name, *["not looked for"] * 4)
        for name, one in kinds
    ]
    head = ("pairs that are", "in two splits", "in one split", "of one patient", "by splits")
    return Table("Duplicates: each further copy of a picture is a pair with its first", head, tuple(rows))


def _by_splits(found: Duplicates) -> str:
    names = {name: " and ".join(dict.fromkeys(name.split("|"))) for name in found.by_splits}
    return ", ".join(f"{names[name]}: {count:,}" for name, count in found.by_splits.items()) or "–"


def pairs(packed: Packed) -> Table | None:
    """Every pair that the findings name."""
    if packed.findings is None:
        return None
    kinds = [found for found in (packed.findings.exact, packed.findings.near) if found is not None]
    rows = [
        (
            one.a,
            one.splits[0],
            one.b,
            one.splits[1],
            f"{one.similarity:.3f}",
            "yes" if one.same_patient else "no",
        )
        for found in kinds
        for one in found.pairs
    ]
    left_off = sum(found.left_off for found in kinds)
    caption = f"Pairs by key{f' ({left_off:,} more are not named)' if left_off else ''}"
    head = ("first", "split", "second", "split", "similarity", "one patient")
    return Table(caption, head, tuple(rows)) if rows else None


def quarantine(packed: Packed) -> Table | None:
    """Samples left out, by reason."""
    rows = [
        (reason, f"{count:,}", ", ".join(packed.quarantine.get(reason, [])) or "–")
        for reason, count in sorted(packed.manifest.skipped.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table("Left out, by reason", ("reason", "samples", "for example"), tuple(rows)) if rows else None


def privacy(packed: Packed) -> Table | None:
    """Findings about privacy, by kind; never a value."""
    flags = packed.findings.flags if packed.findings else {}
    rows = [(kind, f"{one.count:,}", ", ".join(one.keys[:3])) for kind, one in flags.items()]
    return Table("Findings by kind", ("kind", "samples", "for example"), tuple(rows)) if rows else None
