"""Packed sets in remote storage: s3, gs, http and the Hugging Face hub, through a local cache."""

from essa_dist.data.remote.config import CacheConfig
from essa_dist.data.remote.opening import open_indexed, open_remote
from essa_dist.data.remote.reuse import next_uses
from essa_dist.data.remote.storage import RemoteShards
from essa_dist.data.remote.verify import verify

__all__ = ["CacheConfig", "RemoteShards", "next_uses", "open_indexed", "open_remote", "verify"]
