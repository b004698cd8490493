"""Metrics: values, bootstrap intervals, paired tests. All take every sample of a set at once."""

from essa_dist.evaluation.metrics.classification import Metrics, bootstrap_interval, classification_metrics
from essa_dist.evaluation.metrics.multi_label import Binary, MultiLabel
from essa_dist.evaluation.metrics.scores import Scores, higher_is_better
from essa_dist.evaluation.metrics.single_label import SingleLabel

__all__ = [
    "Binary",
    "Metrics",
    "MultiLabel",
    "Scores",
    "SingleLabel",
    "bootstrap_interval",
    "classification_metrics",
    "higher_is_better",
]
