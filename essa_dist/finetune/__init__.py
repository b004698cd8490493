"""Supervised adaptation: a labelled task learnt by an adapter and a head, after self-supervision or instead of it."""

from essa_dist.finetune.config import FinetuneConfig
from essa_dist.finetune.finetune import finetune

__all__ = ["FinetuneConfig", "finetune"]
