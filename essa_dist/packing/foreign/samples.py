"""Put the members of one tar together to samples, by key and whatever their order."""

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.header import Header, look
from essa_dist.data.index import NONE
from essa_dist.data.pixels import PLAIN, Bounds, Stored, read_stored, show
from essa_dist.data.tars import Member
from essa_dist.packing.encode import find_bounds
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.facts import Facts, join, read_facts
from essa_dist.packing.frame import Frame
from essa_dist.packing.guards import Fingerprint, fingerprint
from essa_dist.packing.readers.raster import flags_in

ONE_IN = 32
"""Images that give mean and std where not all are decoded."""
MASK_VALUES = 64
"""Numbers from here on are no classes, but grey levels."""
FACTS = ("cls", "json", "txt")
UNUSABLE = ("tif", "tiff", "dcm", "dicom", "nii", "nii.gz", "bmp", "gif", "jp2", "j2k", "jxl", "avif", "heic")
"""Pictures of other kinds, which training doesn't read from tars."""
NO_MASK = "`essa pack` makes them, mask=[] leaves masks out"


class Row(NamedTuple):
    """One usable sample; the fields are those of :class:`essa_dist.data.index.Index`."""

    key: str
    offset: int
    length: int
    crc32: int
    height: int
    width: int
    channels: int
    bits: int
    low: float
    high: float
    slope: float
    intercept: float
    mask_offset: int
    mask_length: int
    facts: Facts


@dataclass
class _Image:
    suffix: str
    offset: int
    length: int
    crc32: int
    header: Header
    flags: tuple[str, ...] = ()
    fingerprint: Fingerprint | None = None
    bounds: Bounds | None = None  # None: PLAIN, unless the facts say otherwise


class _Mask(NamedTuple):
    offset: int
    length: int
    size: tuple[int, int]


@dataclass
class _Sample:
    image: _Image | None = None
    mask: _Mask | None = None
    facts: dict[str, Facts] = field(default_factory=dict)  # by the suffix of their member
    unusable: str = ""
    bad: str = ""

    def told(self) -> Facts:
        """The facts of all members; where several tell, those of the first of FACTS."""
        told = Facts()
        for suffix in FACTS:
            told = join(told, self.facts.get(suffix, Facts()))
        return told


class Samples:
    """Takes the members of one tar. Pixels of one image at a time are in memory."""

    def __init__(self, config: IndexConfig) -> None:
        self.config = config
        self.histogram: NDArray[np.int64] = np.zeros((3, 256), np.int64)
        """Of the pixels as they are shown, of the images that were decoded for it."""
        self.counted = 0
        """Images in the histogram."""
        self.mask_top = self.turned = 0
        self.fingerprints: list[Fingerprint] = []
        """Of each row, in order, once finished; empty: not all images were decoded."""
        self.flags: dict[str, list[int]] = {}
        """Kind of privacy finding -> rows that have it, once finished."""
        self._samples: dict[str, _Sample] = {}
        self._open: tuple[_Sample, Stored, bool] | None = None  # its pixels, whether they count

    def wanted(self, suffix: str) -> bool:
        """Whether members of this suffix are to be read."""
        return suffix in (*self.config.image, *self.config.mask, *FACTS, *UNUSABLE)

    def add(self, member: Member) -> None:
        """Take one member; what is wrong with it makes its sample a bad one."""
        sample = self._samples.setdefault(member.key, _Sample())
        if self._open is not None and self._open[0] is not sample:
            self._show()  # the json with its window comes behind an image
        try:
            self._add(sample, member)
        except Exception as error:  # a broken image makes decoders raise almost anything
            sample.bad = sample.bad or " ".join(str(error).split()) or type(error).__name__

    def finish(self) -> tuple[list[Row], list[tuple[str, str]]]:
        """The usable samples in the order of the tar, and (key, reason) of the others."""
        self._show()
        rows: list[Row] = []
        bad: list[tuple[str, str]] = []
        for key, sample in self._samples.items():
            reason = sample.bad or _missing(sample)
            if reason:
                bad.append((key, reason))
            elif sample.image is not None:  # else a README or its like
                self._remember(len(rows), sample.image)
                rows.append(_row(key, sample, sample.image))
        return rows, bad

    def _remember(self, row: int, image: _Image) -> None:
        if image.fingerprint is not None:
            self.fingerprints.append(image.fingerprint)
        for kind in image.flags:
            self.flags.setdefault(kind, []).append(row)

    def _add(self, sample: _Sample, member: Member) -> None:
        if member.refused:
            raise ValueError(member.refused)
        if member.suffix in self.config.image:
            self._add_image(sample, member)
        elif member.suffix in self.config.mask:
            self._add_mask(sample, member)
        elif member.suffix in FACTS:
            _once(member.suffix in sample.facts)
            sample.facts[member.suffix] = read_facts(member.suffix, member.data, self.config)
        else:
            sample.unusable = member.suffix

    def _add_image(self, sample: _Sample, member: Member) -> None:
        if sample.image is not None:
            _once(sample.image.suffix == member.suffix)
            raise ValueError(
                f"two images ({sample.image.suffix}, {member.suffix}): say image=[{member.suffix}]"
            )
        header, crc32 = look(member.data), zlib.crc32(member.data)
        # The first one always, so that the smallest tar has a mean.
        counts = self.config.check == "pixels" or crc32 % ONE_IN == 0 or not self.counted
        if counts or header.bits == 16:
            pixels = read_stored(member.data, bits=header.bits, size=(header.height, header.width))
            grey = header.channels == 1 and pixels.ndim == 3  # 8-bit grey comes as three equal channels
            self._open = sample, pixels[:, :, 0] if grey else pixels, counts
        flags = flags_in(member.data) if self.config.check == "pixels" else ()
        sample.image = _Image(member.suffix, member.offset, len(member.data), crc32, header, flags)
        self.turned += not header.upright

    def _show(self) -> None:
        """Find the window of the open image and count its pixels."""
        if self._open is None:
            return
        (sample, pixels, counts), self._open = self._open, None
        assert sample.image is not None
        meaning = sample.told().meaning
        sample.image.bounds = meaning.bounds() if meaning else find_bounds(Frame(pixels), pixels)
        if counts:
            shown = show(pixels, sample.image.bounds)
            channels = [shown] if shown.ndim == 2 else [shown[:, :, c] for c in range(3)]
            self.histogram += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
            self.counted += 1
            if self.config.check == "pixels":
                sample.image.fingerprint = fingerprint(shown)

    def _add_mask(self, sample: _Sample, member: Member) -> None:
        _once(sample.mask is not None)
        header = look(member.data)
        if (header.kind, header.channels, header.bits) != ("png", 1, 8):
            raise ValueError(f"its mask is no 8-bit grey png ({NO_MASK})")
        size = header.height, header.width
        top = int(read_stored(member.data, bits=8, size=size).max())
        if top >= MASK_VALUES:
            raise ValueError(f"its mask has values up to {top}, which are no class numbers ({NO_MASK})")
        self.mask_top = max(self.mask_top, top)
        sample.mask = _Mask(member.offset, len(member.data), size)


def _missing(sample: _Sample) -> str:
    """What a sample lacks to be used; empty: nothing, or it is none."""
    if sample.image is None:
        if sample.unusable:
            return f"holds {sample.unusable}: unpack the tar and use `essa pack`"
        return "no image" if sample.mask is not None or set(sample.facts) - {"txt"} else ""
    header = sample.image.header
    if sample.mask is not None and sample.mask.size != (header.height, header.width):
        return f"its mask has {sample.mask.size[1]}x{sample.mask.size[0]} pixels, the image {header.width}x{header.height}"
    return ""


def _row(key: str, sample: _Sample, image: _Image) -> Row:
    facts, header = sample.told(), image.header
    meaning = facts.meaning
    bounds = meaning.bounds() if meaning else image.bounds or PLAIN
    mask = sample.mask or _Mask(NONE, NONE, (0, 0))
    return Row(
        key,
        image.offset,
        image.length,
        image.crc32,
        *header[1:5],
        *bounds,
        meaning.slope if meaning else 1.0,
        meaning.intercept if meaning else 0.0,
        *mask[:2],
        facts,
    )


def _once(seen: bool) -> None:
    if seen:
        raise ValueError("duplicate key")
