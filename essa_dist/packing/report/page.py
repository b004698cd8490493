"""``essa data report``: one page about a packed set, in one file."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from essa_dist.data.manifest import REPORT_FILE
from essa_dist.packing.report.record import read_packed
from essa_dist.packing.report.sections import sections
from essa_dist.packing.report.verdict import concerns, verdict
from essa_dist.report.html import fill
from essa_dist.settings import Config


class DataReportConfig(Config):
    """A packed set, shown on one page. Needs `packed`."""

    packed: str
    """Packed set: a folder as written by `essa pack`."""
    out: str | None = None
    """File to write; none: `report.html` in the packed set."""


def data_report(config: DataReportConfig) -> dict[str, Any]:
    """Write the page; the same set gives the same bytes. Takes seconds: of large sets it draws and measures a sample.

    Returns ``html`` (path), ``samples`` and ``concerns`` (what a user must look at, a sentence each). Raises UsageError
    where ``packed`` is no packed set, DataError where it is damaged; pictures that can't be read are left out.
    """
    packed = read_packed(Path(config.packed))
    page = Path(config.out) if config.out else packed.folder / REPORT_FILE
    found = concerns(packed)
    with TemporaryDirectory() as pictures:  # the page embeds them
        text = fill(
            f"Data report: {packed.manifest.name}",
            verdict(found),
            found,
            sections(packed, Path(pictures)),
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    return {"html": str(page), "samples": len(packed.index), "concerns": found}
