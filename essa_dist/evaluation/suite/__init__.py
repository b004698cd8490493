"""Several protocols over several models, data sets, label fractions and seeds, into one table."""

from essa_dist.evaluation.suite.config import SuiteConfig, SuiteData
from essa_dist.evaluation.suite.run import run_suite

__all__ = ["SuiteConfig", "SuiteData", "run_suite"]
