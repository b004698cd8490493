"""What went wrong with a request, whichever library tells it: repeat it, or say it in one line."""

import asyncio
import email.utils
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from essa_dist.data.remote.urls import shown
from essa_dist.errors import DataError

PASSING = {408, 425, 429}
"""HTTP statuses, besides 500 and above, after which a request is worth repeating."""

_LIBRARIES = {"aiohttp", "botocore", "aiobotocore", "urllib3", "requests", "httpx", "gcsfs", "google"}
_CREDENTIALS = (
    "give credentials (s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; gs: "
    "GOOGLE_APPLICATION_CREDENTIALS; hf: HF_TOKEN; a public bucket: FSSPEC_S3_ANON=true, FSSPEC_GCS_TOKEN=anon)"
)


class ShortRead(OSError):
    """Fewer or more bytes came than were asked for."""


class NoRanges(Exception):
    """The server sends whole files only."""


class MissingFile(DataError):
    """What was asked for isn't there."""


class Failure(NamedTuple):
    kind: Literal["passing", "missing", "denied", "lasting"]
    reason: str
    """Without secrets, in one line."""
    after: float | None = None
    """Seconds that the server asks to wait (Retry-After)."""

    def error(self, url: str, tries: int) -> DataError:
        """What the user is told, once there is no more trying."""
        where = shown(url)
        if self.kind == "missing":
            return MissingFile(f"{where} is not there: put it back, correct the name, or pack the data again")
        if self.kind == "denied":
            return DataError(f"{where}: access denied ({self.reason}); {_CREDENTIALS}")
        if self.kind == "passing":
            return DataError(
                f"{where} can't be read in {tries} tries, the last: {self.reason}; check the network and the server, "
                "or raise data.cache.retries or data.cache.timeout"
            )
        return DataError(
            f"{where} can't be read: {self.reason}; check the address, its region and the server"
        )


def judge(error: BaseException) -> Failure:
    """Sort an error of aiohttp, botocore, gcsfs or the operating system, by HTTP status where there is one."""
    reason = _reason(error)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # S3 tells some as status 400
        return Failure("passing", "timeout")
    if isinstance(error, NoRanges):
        return Failure("lasting", "the server sends whole files only (no HTTP range requests)")
    status = _status(error)
    if status == 416:
        return Failure("lasting", "the file is shorter than its manifest says (416)")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Failure("missing", reason)
    names = {type(one).__name__ for one in _chain(error)}
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or any("Credential" in name for name in names)
        or str(error).startswith("Forbidden")  # gcsfs
    ):
        return Failure("denied", reason)
    if any("Certificate" in name for name in names):
        return Failure("lasting", reason)
    if status is not None:
        passing = status in PASSING or status >= 500
        return Failure("passing" if passing else "lasting", reason, _retry_after(error))
    library = type(error).__module__.partition(".")[0]
    passing = isinstance(error, (OSError, EOFError)) or library in _LIBRARIES
    return Failure("passing" if passing else "lasting", reason)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    # Of aiohttp, then of gcsfs. Not of their causes: aiohttp's parser gives a cut body the status 400.
    for name in ("status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, (int, str)) and str(value).isdigit():
            return int(value)
    for one in _chain(error):  # of botocore, which s3fs translates
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            told: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return told
    return None


def _retry_after(error: BaseException) -> float | None:
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        headers: Any = getattr(one, "headers", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        if isinstance(headers, Mapping):
            found = {str(name).lower(): str(value) for name, value in headers.items()}.get("retry-after")
            return None if found is None else _seconds(found)
    return None


def _seconds(text: str) -> float | None:
    """Of ``120`` or of a date, the two forms of Retry-After (RFC 9110, 10.2.3)."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    status = _status(error)
    text = " ".join(shown(str(getattr(error, "message", "") or error)).split())
    name = type(error).__name__
    return f"{'' if status is None else f'HTTP {status}, '}{name}{f': {text[:200]}' if text else ''}"
