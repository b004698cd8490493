"""What is done with the sources of every layout: patients, labels of unlabelled ones, order, duplicates."""

import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from essa_dist.data.manifest import UNLABELLED
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.layouts.config import LayoutConfig
from essa_dist.packing.layouts.found import Found, stem
from essa_dist.packing.layouts.published import first_group
from essa_dist.packing.source import Source

logger = logging.getLogger(__name__)

DICOM = (".dcm", ".dicom", ".ima", "")
"""Suffixes of files whose header may name a patient. Other than those of images count as none: ``1.2.840.113``."""


def finish(found: Found, name: str, src: Path, config: LayoutConfig) -> Found:
    """``found`` with patients as the user wants them, without labels in the split ``unlabelled``, sorted by key.

    Raises DataError where two sources have the same key.
    """
    sources, notes = _with_patients(found.sources, src, config)
    sources = [one._replace(label=None, labels=None) if one.split == UNLABELLED else one for one in sources]
    _refuse_duplicates(sources)
    return replace(
        found,
        layout=name,
        sources=sorted(sources, key=lambda one: one.key),
        notes=(*found.notes, *notes),
    )


def _with_patients(
    sources: Sequence[Source], src: Path, config: LayoutConfig
) -> tuple[list[Source], list[str]]:
    if config.patients == "none":
        return [one._replace(patient=None) for one in sources], []
    if config.patient_pattern is not None:
        return _by_pattern(sources, src, config.patient_pattern), []
    always = config.patients == "header"
    asked = [one for one in sources if (always or one.patient is None) and _may_be_dicom(one.path)]
    if not asked:
        if always:
            raise UsageError(f"patients=header: {src} has no DICOM files ({' '.join(DICOM)}or no suffix)")
        return list(sources), []
    return _by_header(sources, asked, always)


def _may_be_dicom(path: Path) -> bool:
    return path.name[len(stem(path.name)) :].lower() in DICOM


def _by_pattern(sources: Sequence[Source], src: Path, pattern: str) -> list[Source]:
    base = src if src.is_dir() else src.parent
    named = []
    for one in sources:
        inside = one.path.is_relative_to(base)
        path = (one.path.relative_to(base) if inside else one.path).as_posix()
        patient = first_group(pattern, path)
        if patient is None:
            raise UsageError(f"patient_pattern={pattern} matches nothing in {path}; it must in every path")
        named.append(one._replace(patient=patient))
    return named


def _by_header(
    sources: Sequence[Source], asked: Sequence[Source], always: bool
) -> tuple[list[Source], list[str]]:
    import pydicom  # noqa: F401  (once, before threads do)

    from essa_dist.packing.readers import hush
    from essa_dist.packing.readers.dicom import patient_of

    hush()
    logger.info("reading the headers of %d DICOM files to know patients apart", len(asked))
    paths = [one.path for one in asked]
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:  # mostly waiting, on a network
        warnings.simplefilter("ignore")  # what a header has wrong is for the reader to say
        ids = dict(zip(paths, pool.map(patient_of, paths), strict=True))
    named = [one._replace(patient=ids.get(one.path, one.patient)) for one in sources]
    unknown = sum(ids[one.path] is None for one in asked)
    if always and unknown == len(asked):
        raise UsageError(f"patients=header: none of {len(asked)} headers names a patient; set patients=none")
    notes = []
    if unknown < len(asked):
        known = len({patient for patient in ids.values() if patient is not None})
        notes.append(
            f"{known} patients by the headers of {len(asked) - unknown} DICOM files; {unknown} name none"
        )
        if known == 1 and len(asked) > 1:
            notes.append(
                "all DICOM headers name the same patient: if that isn't so (a placeholder), set patients=none"
            )
    return named, notes


def _refuse_duplicates(sources: Sequence[Source]) -> None:
    seen: dict[str, Path] = {}
    for one in sources:
        if one.key in seen:
            raise DataError(
                f"duplicate key {one.key!r}: {seen[one.key]} and {one.path}; rename one of the files or list it once"
            )
        seen[one.key] = one.path
