"""Addresses of remote data: taking them apart, and showing them without their secrets."""

import re
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from essa_dist.errors import DataError, UsageError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http", "hf": "http"}
"""The optional dependencies of this project that each protocol needs."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[\w/%.-])\?[^\s'\",)>]*")


def is_url(ref: str) -> bool:
    """Whether ``ref`` names something by protocol, ``s3://...``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", ref) is not None


def protocol(url: str) -> str:
    """``s3`` of ``s3://...``; UsageError for one that can't be read."""
    name = url.partition("://")[0].lower()
    if name not in EXTRAS:
        raise UsageError(f"{shown(url)}: {name}:// can't be read; use a local folder or {listed()}")
    return name


def listed() -> str:
    """The protocols, for messages."""
    return ", ".join(f"{name}://" for name in EXTRAS)


def split_ref(ref: str) -> tuple[str, str | None]:
    """``URL`` or ``URL:split`` into both. A query (``?token=...``) may follow either."""
    parts = urlsplit(ref)
    path, colon, split = parts.path.rstrip("/").rpartition(":")
    if not colon or "/" in split:
        path, split = parts.path, ""
    return urlunsplit(parts._replace(path=path.rstrip("/"))), split or None


def join(base: str, file: str) -> str:
    """The address of ``file``, a path from ``base`` or itself an address.

    Raises DataError for a path that leads out of ``base``: a manifest from elsewhere may not name files of this machine.
    """
    if is_url(file):
        return file
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{shown(base)}: the manifest names {file!r}, outside of the set: index its tars again"
        )
    parts = urlsplit(base)
    name = quote(file) if parts.scheme in ("http", "https") else file
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(url: str) -> str:
    """``url``, or any text with addresses in it, without user names, passwords and queries (which hold signatures)."""
    return _QUERY.sub("", _CREDENTIALS.sub("", url))


def hub_address(url: str) -> str:
    """The https address of ``hf://[datasets/|spaces/]owner/name[@revision]/file`` on the Hugging Face hub."""
    from huggingface_hub import hf_hub_url

    parts = url.partition("://")[2].split("/")
    kind = parts.pop(0).removesuffix("s") if parts[0] in ("datasets", "spaces", "models") else "model"
    if len(parts) < 3:
        raise UsageError(f"{shown(url)}: write hf://datasets/OWNER/NAME/FOLDER, or OWNER/NAME@REVISION")
    owner, (name, _, revision), file = parts[0], parts[1].partition("@"), "/".join(parts[2:])
    return hf_hub_url(f"{owner}/{name}", file, repo_type=kind, revision=revision or None)
