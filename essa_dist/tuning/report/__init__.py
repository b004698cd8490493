"""What a sweep leaves for a reader: a table of its trials, a page with pictures, TensorBoard's HParams, a last word."""

from typing import TYPE_CHECKING, Any

from essa_dist.tuning.report.summary import summary, summary_text

if TYPE_CHECKING:
    from essa_dist.tuning.report.page import write_report

__all__ = ["summary", "summary_text", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the page, and with it torch and matplotlib, when it is asked for: words and the live table need neither."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from essa_dist.tuning.report.page import write_report

    return write_report
