"""Put the page together: one self-contained HTML file, and the PNG files that it embeds."""

from pathlib import Path
from typing import Any

from pydantic import Field

from essa_dist import runfolder
from essa_dist.errors import EssaError
from essa_dist.report.banner import BANNER
from essa_dist.report.crops import crops_section
from essa_dist.report.finetuned import finetuned_sections, finetuned_sentence, finetuned_title, is_finetuned
from essa_dist.report.html import fill
from essa_dist.report.looks import look_at_images, look_sections, missing_looks
from essa_dist.report.record import Record, read_record
from essa_dist.report.section import Section
from essa_dist.report.sections import confusion_section, results_section, setup_section, training_sections
from essa_dist.report.suite import suite_sections
from essa_dist.report.tables import sentence
from essa_dist.settings import Config


class ReportConfig(Config):
    """One run, shown on one page."""

    run: str
    """Run folder, as written by adapt or finetune."""
    base: str | None = None
    """Frozen model to compare with (timm name, weights file, export folder); empty: the run's backbone before adaptation."""
    images: str | None = None
    """Packed images to draw features of, DIR or DIR:split; empty: the test split (else val) beside the training images."""
    n_images: int = Field(default=6, ge=1, le=12)
    """Images whose features are drawn; of a fine-tuned run, errors or masks."""
    out: str | None = None
    """Folder for the page and its pictures; empty: report/ in the run folder. Files of an earlier report are replaced."""


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page of a run from whatever the run has; what it lacks is named with the command that makes it.

    Returns ``html`` (path), ``pictures`` (paths of the PNG files) and ``missing`` (what the page could not show).
    Raises UsageError when ``run`` is no run folder.
    """
    record = read_record(Path(config.run))
    out = Path(config.out) if config.out else record.run / runfolder.REPORT
    out.mkdir(parents=True, exist_ok=True)
    sections = _sections(record, config, out)
    page = out / "report.html"
    page.write_text(render(record, sections), encoding="utf-8")
    shown = [picture.path for section in sections for picture in section.pictures]
    banner = out / BANNER
    return {
        "html": str(page),
        "pictures": [str(path) for path in [*shown, *([banner] if banner.is_file() else [])]],
        "missing": [gap.what for section in sections for gap in section.missing],
    }


def _sections(record: Record, config: ReportConfig, out: Path) -> list[Section]:
    if is_finetuned(record):
        return finetuned_sections(record, out, config.n_images)
    base = config.base or record.base_name
    return [
        results_section(record, base, out),
        *suite_sections(record.run, out),
        *_look_sections(record, config, out),
        confusion_section(record, base, out),
        *training_sections(record, out),
        crops_section(record, out),
        setup_section(record),
    ]


def _look_sections(record: Record, config: ReportConfig, out: Path) -> list[Section]:
    (out / BANNER).unlink(missing_ok=True)  # an earlier report's must not pass for this one's
    try:
        return look_sections(look_at_images(record, config.base, config.images, config.n_images), record, out)
    except (EssaError, OSError, ValueError) as error:  # ValueError: a config that another version wrote
        return missing_looks(error, record)


def render(record: Record, sections: list[Section]) -> str:
    """The page of a run as HTML."""
    if is_finetuned(record):
        return fill(finetuned_title(record), finetuned_sentence(record), record.notes, sections)
    title = f"Adaptation report: {record.run.resolve().name}"
    return fill(title, sentence(record), record.notes, sections)
