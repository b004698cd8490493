"""The page about a packed set: what a user should know, and look at, before training on it."""

from essa_dist.packing.report.page import REPORT_FILE, DataReportConfig, data_report

__all__ = ["REPORT_FILE", "DataReportConfig", "data_report"]
