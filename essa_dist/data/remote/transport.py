"""One request: bytes of a file by any protocol. No retries here."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from essa_dist.data.remote.failures import NoRanges, ShortRead
from essa_dist.data.remote.urls import EXTRAS, hub_address, protocol, shown
from essa_dist.errors import UsageError


class Facts(NamedTuple):
    """What a server tells about a file without sending it."""

    size: int | None
    version: str
    """Changes when the file does: its ETag, else its date; empty where neither is told."""


class Transport:
    """Filesystems of fsspec, and their connections, of one event loop. To be made and used inside of it."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._filesystems: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="essa-remote")
        self._moved: dict[
            str, str
        ] = {}  # address on the hub -> where it sent us, signed and good for some time

    async def get(self, url: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``. Raises ShortRead for another number, and whatever the library raises."""
        filesystem, kind = self._filesystem(url)
        if kind in ("http", "hf"):
            async with self._respond(filesystem, url, start, start + length) as response:
                data: bytes = await response.read()
        else:
            data = await self._call(filesystem, "cat_file", url, start=start, end=start + length)
        if len(data) != length:
            raise ShortRead(f"{len(data)} bytes came, not {length}")
        return data

    async def facts(self, url: str) -> Facts:
        """Size and version of a file."""
        filesystem, kind = self._filesystem(url)
        if kind in ("http", "hf"):
            # One byte instead of HEAD: also answered by addresses signed for GET, and shows that ranges work.
            async with self._respond(filesystem, url, 0, 1) as response:
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
                return Facts(int(total) if total.isdigit() else None, version)
        info = await self._call(filesystem, "info", url)
        if info.get("type") == "directory":
            raise FileNotFoundError(url)
        version = next(
            (info[name] for name in ("ETag", "etag", "LastModified", "updated", "mtime") if info.get(name)),
            "",
        )
        return Facts(info.get("size"), str(version))

    async def list_folder(self, url: str) -> None:
        """Have a folder listed, where that makes ``facts`` of its files cheap: one request for a thousand of them."""
        filesystem, kind = self._filesystem(url)
        if kind not in ("http", "hf"):
            await self._call(filesystem, "ls", url, detail=True)

    async def close(self) -> None:
        """Close connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for kind, filesystem in self._filesystems.items():
            session = getattr(filesystem, "_session", None)
            if kind == "s3" and filesystem._s3 is not None:
                await filesystem._s3creator.__aexit__(None, None, None)
            elif session is not None:
                await session.close()

    async def _call(self, filesystem: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if filesystem.async_impl:
            return await getattr(filesystem, f"_{name}")(*arguments, **options)
        work = partial(getattr(filesystem, name), *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @asynccontextmanager
    async def _respond(self, filesystem: Any, url: str, start: int, stop: int) -> AsyncIterator[Any]:
        session = await filesystem.set_session()
        asked = dict(filesystem.kwargs)  # what the user's fsspec settings add to each request
        headers = {
            **asked.pop("headers", {}),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        address = url
        if protocol(url) == "hf":
            address = self._moved.get(url) or hub_address(url)
            headers |= _hub_headers() if url not in self._moved else {}
        async with session.get(filesystem.encode_url(address), headers=headers, **asked) as response:
            if response.status in (401, 403, 404) and url in self._moved:
                del self._moved[url]
                raise ConnectionError(
                    "the address given by the hub has expired"
                )  # asked anew by the next try
            response.raise_for_status()
            if response.status != 206:
                raise NoRanges
            if protocol(url) == "hf" and response.history:
                self._moved[url] = str(response.url)
            yield response

    def _filesystem(self, url: str) -> tuple[Any, str]:
        name = protocol(url)
        kind = {"https": "http", "s3a": "s3", "gcs": "gs"}.get(name, name)
        if kind not in self._filesystems:
            try:
                self._filesystems[kind] = _make(kind, self._concurrency)
            except ImportError as error:
                raise UsageError(
                    f"{shown(url)}: a package for {name}:// is missing ({error}); "
                    f"install it: pip install 'essa-dist[{EXTRAS[name]}]'"
                ) from error
        return self._filesystems[kind], kind


def _make(kind: str, concurrency: int) -> Any:
    import fsspec

    # An instance of this loop, shared with nobody: fsspec's own, cached ones don't survive a fork.
    options: dict[str, Any] = {
        "asynchronous": True,
        "loop": asyncio.get_running_loop(),
        "skip_instance_cache": True,
    }
    if kind == "s3":  # it and botocore would repeat requests by rules of their own, and open 10 connections
        own: Mapping[str, Any] = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        defaults = {"max_pool_connections": concurrency, "retries": {"total_max_attempts": 1}}
        filesystem = fsspec.filesystem("s3", **options, config_kwargs={**defaults, **own})
        filesystem.retries = 1
        return filesystem
    if (
        kind == "gs"
    ):  # not fsspec's choice, which asks by gRPC what kind of bucket it is: gRPC doesn't survive a fork
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(**options)
    return fsspec.filesystem("http", **options)


def _hub_headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {} if token is None else {"Authorization": f"Bearer {token}"}
