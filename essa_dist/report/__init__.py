"""The page of a run: tables, curves and pictures before and after adaptation, in one HTML file."""

from essa_dist.report.page import ReportConfig, report

__all__ = ["ReportConfig", "report"]
