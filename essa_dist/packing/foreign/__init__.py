"""``essa pack index``: an index and a manifest for WebDataset tars that somebody else wrote, which stay as they are."""

from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.indexing import index

__all__ = ["IndexConfig", "index"]
