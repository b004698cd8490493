"""Models at work: features of any images as files, predictions of a fine-tuned run."""

from essa_dist.inference.features import Embeddings, read_embeddings

__all__ = ["Embeddings", "read_embeddings"]
