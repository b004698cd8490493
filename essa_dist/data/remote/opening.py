"""Open a packed set at an address: its manifest and index come into the local cache, its shards stay where they are."""

import hashlib
import json
import shutil
from pathlib import Path

from essa_dist.data.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from essa_dist.data.remote.config import CacheConfig
from essa_dist.data.remote.failures import MissingFile
from essa_dist.data.remote.fetcher import Fetcher
from essa_dist.data.remote.keeping import Hold, disk_usage, locked, make_room, set_folder
from essa_dist.data.remote.storage import RemoteShards
from essa_dist.data.remote.transport import Facts
from essa_dist.data.remote.urls import is_url, join, protocol, shown
from essa_dist.errors import DataError, UsageError


def open_remote(url: str, cache: CacheConfig | None = None) -> RemoteShards:
    """The shards of the packed set at ``url``; its manifest and index are in their ``folder`` then.

    Both files are fetched when they have changed. Raises UsageError where there is no packed set or a package is missing,
    DataError where the server can't be read.
    """
    cache = cache or CacheConfig()
    protocol(url)
    with Fetcher(cache) as fetcher:
        folder, hold = fetcher.run(_fetch_set(fetcher, url, cache.root()))
    return _open(url, folder, hold, cache)


def open_indexed(packed: Path, cache: CacheConfig | None = None) -> RemoteShards:
    """The shards of a local set whose manifest names them by their addresses. Raises UsageError where some are local."""
    cache = cache or CacheConfig()
    manifest = packed / MANIFEST_FILE
    for shard in read_manifest(packed).shards:
        if not is_url(shard.file):
            raise UsageError(
                f"{manifest} names tars both here ({shard.file}) and elsewhere; index them as two sets"
            )
    state = (packed / INDEX_FILE).stat()
    folder, hold = set_folder(cache.root(), manifest.read_bytes(), f"{state.st_size} {state.st_mtime_ns}")
    with locked(folder / "opening"):
        if not (folder / MANIFEST_FILE).exists():
            for name in (INDEX_FILE, MANIFEST_FILE):
                shutil.copyfile(packed / name, folder / f"{name}.part")
                (folder / f"{name}.part").rename(folder / name)
    return _open("", folder, hold, cache)


def _open(base: str, folder: Path, hold: Hold, cache: CacheConfig) -> RemoteShards:
    bound = cache.bound(disk_usage(folder))
    wanted = sum(shard.bytes for shard in read_manifest(folder).shards)
    make_room(folder, min(bound, wanted), bound)
    storage = RemoteShards(base, folder, cache, bound)
    del hold  # the storage has its own
    return storage


async def _fetch_set(fetcher: Fetcher, url: str, root: Path) -> tuple[Path, Hold]:
    try:
        about = await fetcher.facts(join(url, MANIFEST_FILE))
        manifest = b"".join(
            [part async for part in fetcher.parts(join(url, MANIFEST_FILE), _size(url, about))]
        )
        index = await fetcher.facts(join(url, INDEX_FILE))
    except MissingFile as error:
        raise UsageError(
            f"{shown(url)} is not a packed data set (no {MANIFEST_FILE} and {INDEX_FILE}, or no such place); "
            "copy there what `essa pack` wrote, and name its folder"
        ) from error
    wanted = _index_sha256(manifest)
    folder, hold = set_folder(root, manifest, wanted or f"{index.size} {index.version}")
    with locked(folder / "opening"):  # other ranks wait
        if not (folder / MANIFEST_FILE).exists():
            digest = hashlib.sha256()
            with open(folder / f"{INDEX_FILE}.part", "wb") as file:
                async for part in fetcher.parts(join(url, INDEX_FILE), _size(url, index)):
                    file.write(part)
                    digest.update(part)
            if wanted not in ("", digest.hexdigest()):
                raise DataError(
                    f"{shown(url)}: {INDEX_FILE} is not the one of {MANIFEST_FILE} (SHA-256), as while a set is being "
                    "copied there: try again then, or copy both again"
                )
            (folder / f"{INDEX_FILE}.part").rename(folder / INDEX_FILE)
            (folder / f"{MANIFEST_FILE}.part").write_bytes(manifest)
            (folder / f"{MANIFEST_FILE}.part").rename(
                folder / MANIFEST_FILE
            )  # last: where it is, all is whole
    return folder, hold


def _index_sha256(manifest: bytes) -> str:
    """Of the index that belongs to a manifest; empty where that doesn't say, or is none (which its reader will tell)."""
    try:
        return str(json.loads(manifest).get("index_sha256", ""))
    except (ValueError, AttributeError):
        return ""


def _size(url: str, facts: Facts) -> int:
    if facts.size is None:
        raise DataError(f"{shown(url)}: the server doesn't tell how large its files are; use another server")
    return facts.size
