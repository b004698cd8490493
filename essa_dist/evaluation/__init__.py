"""How good frozen features are: k-NN, linear probes, few shots and retrieval on labelled images that adaptation never saw."""

from essa_dist.evaluation.evaluate import EvaluateConfig, evaluate
from essa_dist.evaluation.features import FeatureSet, extract_features
from essa_dist.evaluation.probe import ProbeConfig, evaluate_model

__all__ = ["EvaluateConfig", "FeatureSet", "ProbeConfig", "evaluate", "evaluate_model", "extract_features"]
