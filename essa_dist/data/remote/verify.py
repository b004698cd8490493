"""Read every shard of a packed set, local or remote, and compare it with its checksum in the manifest."""

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from essa_dist.data.manifest import INDEX_FILE, Shard, read_manifest
from essa_dist.data.remote.config import CacheConfig
from essa_dist.data.remote.fetcher import Fetcher
from essa_dist.data.remote.opening import open_remote
from essa_dist.data.remote.urls import is_url, join, shown
from essa_dist.errors import DataError
from essa_dist.settings import Config

logger = logging.getLogger(__name__)

TELL_S = 10.0
"""Seconds between lines about how far it is."""


class VerifyConfig(Config):
    """What to read through. Needs `packed`."""

    packed: str
    """A packed data set: a folder or a URL."""
    cache: CacheConfig = CacheConfig()
    """How remote data are fetched."""


def verify_data(config: VerifyConfig) -> dict[str, Any]:
    """Read all shards and compare their checksums; returns ``packed``, ``shards`` and ``bytes``.

    Raises UsageError where there is no packed set, DataError, naming shards, where one isn't what was packed.
    """
    told, done, read = time.monotonic(), 0, 0

    def tell(shard: Shard) -> None:
        nonlocal told, done, read
        done, read = done + 1, read + shard.bytes
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            logger.info("%d shards read, %.2f GB", done, read / 1e9)

    found = verify(config.packed, config.cache, tell)
    bad = found["bad"]
    if bad:
        first = "; ".join(f"{file}: {reason}" for file, reason in list(bad.items())[:3])
        raise DataError(
            f"{len(bad)} of {found['shards'] + 1} files of {found['ref']} are not what was packed: {first}; copy them again"
        )
    return {"packed": found["ref"], "shards": found["shards"], "bytes": found["bytes"]}


def verify(
    ref: str, cache: CacheConfig | None = None, progress: Callable[[Shard], None] = lambda _: None
) -> dict[str, Any]:
    """Compare the SHA-256 of each shard of the set at ``ref``, a folder or an address without a split.

    ``progress`` is called after each shard. Returns ``ref``, ``shards``, ``bytes`` and ``bad``: what is wrong, by shard.
    Raises UsageError where there is no packed set.
    """
    cache = cache or CacheConfig()
    folder = open_remote(ref, cache).folder if is_url(ref) else Path(ref)
    manifest = read_manifest(folder)
    shards = manifest.shards
    bad: dict[str, str] = {}
    if manifest.index_sha256:  # of a remote set: its copy, checked when it was fetched
        size = (folder / INDEX_FILE).stat().st_size
        if _local_digest(folder / INDEX_FILE, size) != manifest.index_sha256:
            bad[INDEX_FILE] = "it is not the one of the manifest (SHA-256)"
    with Fetcher(cache) as fetcher:
        for shard in shards:
            remote = is_url(ref) or is_url(shard.file)
            try:
                digest = (
                    fetcher.run(_remote_digest(fetcher, join(ref, shard.file), shard.bytes))
                    if remote
                    else _local_digest(folder / shard.file, shard.bytes)
                )
                if digest != shard.sha256:
                    bad[shard.file] = "its bytes have changed (SHA-256)"
            except DataError as error:
                bad[shard.file] = str(error)
            progress(shard)
    return {
        "ref": shown(ref),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
        "bad": bad,
    }


def _local_digest(path: Path, size: int) -> str:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = file.tell()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; copy it again or pack the data again") from error
    _check_size(str(path), found, size)
    return digest


async def _remote_digest(fetcher: Fetcher, url: str, size: int) -> str:
    facts = await fetcher.facts(url)
    _check_size(shown(url), facts.size if facts.size is not None else size, size)
    digest = hashlib.sha256()
    async for part in fetcher.parts(url, size):
        digest.update(part)
    return digest.hexdigest()


def _check_size(where: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{where}: expected {expected} bytes, found {found}; copy it again or pack the data again"
        )
