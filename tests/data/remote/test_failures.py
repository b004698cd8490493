"""Errors of several libraries are sorted into those worth a repetition and those that aren't."""

import datetime
import email.utils

import pytest

from essa_dist.data.remote.failures import judge


class ClientResponseError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"{status}, url='https://me:hunter2@host/a?sig=hunter2'")
        self.status, self.headers = status, headers


def botocore(status: int, **headers: str) -> OSError:
    """A ClientError of botocore as s3fs translates it."""
    cause = Exception("An error occurred")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}  # type: ignore[attr-defined]
    error = OSError(5, "An error occurred")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("make", [ClientResponseError, botocore])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (408, "passing"),
        (429, "passing"),
        (500, "passing"),
        (503, "passing"),
        (400, "lasting"),
        (301, "lasting"),
        (416, "lasting"),
        (401, "denied"),
        (403, "denied"),
        (404, "missing"),
        (410, "missing"),
    ],
)
def test_a_status_decides(make: type, status: int, kind: str) -> None:
    failure = judge(make(status))
    assert failure.kind == kind
    assert "hunter2" not in failure.reason


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "passing"),
        (ConnectionResetError("reset"), "passing"),
        (EOFError(), "passing"),
        (FileNotFoundError("x"), "missing"),
        (PermissionError("x"), "denied"),
        (OSError("Forbidden: x"), "denied"),
        (ValueError("a mistake of ours"), "lasting"),
    ],
)
def test_where_there_is_no_status_the_class_decides(error: Exception, kind: str) -> None:
    assert judge(error).kind == kind


@pytest.mark.parametrize("make", [ClientResponseError, botocore])
def test_retry_after_is_read_as_seconds_and_as_a_date(make: type) -> None:
    assert judge(make(429, **{"Retry-After": "7"})).after == 7
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    after = judge(make(503, **{"retry-after": email.utils.format_datetime(soon, usegmt=True)})).after
    assert after is not None
    assert 55 < after <= 60
    assert judge(make(503, **{"Retry-After": "soon"})).after is None
    assert judge(make(503)).after is None
