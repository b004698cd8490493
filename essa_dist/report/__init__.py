"""The page of a run: tables, curves and pictures before and after adaptation, in one HTML file."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from essa_dist.report.page import ReportConfig, report

__all__ = ["ReportConfig", "report"]


def __getattr__(name: str) -> Any:
    """Import the page of a run, and with it models, when it is asked for: that of a data set needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.page"), name)
