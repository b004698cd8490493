"""Name the tars of a data set that somebody else wrote, and open them: folders, patterns, braces, URLs."""

import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from essa_dist.errors import DataError, UsageError

SCHEMES = ("file", "s3", "gs", "http", "https", "hf")
"""URLs that are opened, through fsspec; none of them runs a command."""
PIPE = "pipe"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".tar.lz4")
MAX_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


def scheme(shard: str) -> str:
    """Of a URL, in lower case; empty: a path."""
    match = _SCHEME.match(shard)
    return match[1].lower() if match and not os.path.exists(shard) else ""


def list_shards(src: str | Sequence[str], *, allow_pipe: bool = False) -> list[str]:
    """The tars that ``src`` names, once each, in natural order (2 before 10).

    A folder, a file, a pattern (``*``), braces (``train-{000000..000099}.tar``), a URL of any of these, or several of
    them. Raises UsageError for a URL of another kind or compressed tars, DataError where there are none.
    """
    given = [src] if isinstance(src, str) else list(src)
    found: dict[str, None] = {}
    for one in given:
        named = [shard for name in _braces(one) for shard in _expand(name, allow_pipe=allow_pipe)]
        found.update(dict.fromkeys(named))
    if not found:
        raise DataError(f"no tars in {', '.join(given)}: name a folder of them, a pattern or a URL")
    return sorted(found, key=_natural)


@contextmanager
def open_shard(shard: str) -> Iterator[IO[bytes]]:
    """The bytes of a shard, to be read forwards. Raises OSError, or what its storage raises."""
    kind = scheme(shard)
    if kind == PIPE:
        from webdataset.gopen import gopen_pipe

        stream = gopen_pipe(shard)
        try:
            yield stream
        finally:
            stream.close()
    elif kind:
        import fsspec

        with fsspec.open(shard, "rb") as file:
            yield file
    else:
        with open(shard, "rb") as file:
            yield file


def refuse_scheme(shard: str, *, allow_pipe: bool = False) -> None:
    """Raise UsageError for a URL that would run a command, or of a kind that isn't known."""
    kind = scheme(shard)
    if kind == PIPE:
        if not allow_pipe:
            raise UsageError(
                f"{shard}: a pipe: URL runs a command of its author's; read the shards by URL or path, or, where you "
                "trust it, stream it with data.order=stream data.stream.allow_pipe=true"
            )
    elif "::" in shard or (kind and kind not in SCHEMES):
        raise UsageError(f"{shard}: give a path or a URL of {', '.join(SCHEMES)}")


def _braces(name: str) -> list[str]:
    if name.startswith(f"{PIPE}:") or "{" not in name or os.path.exists(name):
        return [name]  # the command's own braces, or a file whose name has them
    import braceexpand

    numbers = [abs(int(stop) - int(start)) + 1 for start, stop in _RANGE.findall(name)]
    if math.prod(numbers) > MAX_SHARDS:  # before all are in memory
        raise UsageError(f"{name} names more than {MAX_SHARDS} shards: check the numbers in the braces")
    try:
        return list(braceexpand.braceexpand(name))
    except ValueError as error:
        raise UsageError(
            f"{name}: braces don't match ({error}); write shard-{{000000..000099}}.tar"
        ) from error


def _expand(name: str, *, allow_pipe: bool) -> list[str]:
    """The tars of one name without braces."""
    refuse_scheme(name, allow_pipe=allow_pipe)
    kind = scheme(name)
    if kind == "file":
        name, kind = url2pathname(urlsplit(name).path), ""
    if kind == PIPE:
        return [name]
    if not kind and Path(name).is_dir():
        return _of_folder(name, sorted(os.listdir(name)))
    if kind in ("http", "https"):  # a ? begins a query there, and nothing can be listed
        found = [name]
    elif kind and ("*" in name or name.endswith("/")):
        found = _remote(name)
    elif not kind and glob.has_magic(name) and not os.path.exists(name):
        found = sorted(glob.glob(name, recursive=True))
    else:
        found = [name]
        if not kind and not os.path.exists(name):
            raise UsageError(
                f"no such file or folder: {name}; give tars, a folder of them, a pattern or a URL"
            )
    packed = next((one for one in found if one.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise UsageError(_unpack(packed))
    return found


def _of_folder(folder: str, names: Sequence[str]) -> list[str]:
    """Paths of the ``.tar`` files of a folder; hidden ones don't count."""
    tars = [name for name in names if name.lower().endswith(".tar") and not name.startswith(".")]
    packed = [name for name in names if name.lower().endswith(COMPRESSED)]
    if packed and not tars:
        raise UsageError(_unpack(os.path.join(folder, packed[0])))
    return [os.path.join(folder, name) for name in tars]


def _remote(name: str) -> list[str]:
    import fsspec

    pattern = f"{name}*.tar" if name.endswith("/") else name
    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        return [str(filesystem.unstrip_protocol(one)) for one in filesystem.glob(path)]
    except (OSError, ImportError, ValueError) as error:
        raise DataError(
            f"{name} can't be listed ({' '.join(str(error).split())}): check the address"
        ) from error


def _unpack(shard: str) -> str:
    return (
        f"{shard} is compressed, which has no random access (and gains nothing on JPEG): unpack it to a .tar first, "
        "e.g. gunzip"
    )


def _natural(name: str) -> list[Any]:
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]
