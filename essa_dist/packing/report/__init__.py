"""The page about a packed set: what a user should know, and look at, before training on it."""

from essa_dist.packing.report.page import DataReportConfig, data_report

__all__ = ["DataReportConfig", "data_report"]
