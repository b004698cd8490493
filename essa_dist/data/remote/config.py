"""Settings of remote data, and where its local copies lie."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from essa_dist.settings import Config

AUTO_BYTES = 50 * 10**9
"""Most that ``bytes=auto`` takes."""


class CacheConfig(Config):
    """How remote data (s3, gs, http, hf) are fetched and kept. Local data don't need it."""

    folder: str = ""
    """A folder on a disk of this machine, not one shared by several; empty: `$ESSA_CACHE`, else `essa` under
    `$XDG_CACHE_HOME`, else `~/.cache/essa`."""
    bytes: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Most that the samples of a packed set may take on disk, shared by all processes of the machine; other sets that
    nobody reads give way. `auto`: half of the free disk, at most 50 GB. 0: keep nothing."""
    ahead_bytes: int = Field(default=64 * 2**20, ge=0)
    """Most that each process may hold in memory of what was announced and is not yet read."""
    concurrency: int = Field(default=32, ge=1)
    """Requests that each process may have under way."""
    retries: int = Field(default=10, ge=0)
    """How often a request is repeated after an error that may pass, with growing pauses: 10 bridge about two minutes."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds after which a request is given up and repeated."""

    def root(self) -> Path:
        """The folder that is meant."""
        if self.folder:
            return Path(self.folder).expanduser()
        if os.environ.get("ESSA_CACHE"):
            return Path(os.environ["ESSA_CACHE"]).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "essa"

    def bound(self, cached: int) -> int:
        """``bytes`` as a number, where ``cached`` bytes of the disk are taken by this cache already."""
        if self.bytes != "auto":
            return self.bytes
        return min(AUTO_BYTES, (shutil.disk_usage(self.root()).free + cached) // 2)
