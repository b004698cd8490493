"""The same set from S3 (moto's server, behind one that misbehaves) and from Google's storage (its interface, imitated)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault, FaultyServer

from essa_dist.data.remote import CacheConfig, verify
from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError

FAULTS = [
    Fault(status=500),
    Fault(status=429, headers=(("Retry-After", "0"),)),
    Fault(status=503),
    Fault(drop=True),
    Fault(truncate=True),
    Fault(short=True),
    Fault(flip=True),
]


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()[1]
    running.stop()


@pytest.fixture
def bucket(
    moto_port: int, make_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyServer]:
    """The set ``s3://scans/set``, and the server in front of it."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    make_set()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{moto_port}")
    client.create_bucket(Bucket="scans")
    for file in (tmp_path / "served" / "set").iterdir():
        client.upload_file(str(file), "scans", f"set/{file.name}")
    with FaultyServer(upstream=f"127.0.0.1:{moto_port}") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def test_s3_gives_the_bytes_of_the_files_whatever_goes_wrong(bucket: FaultyServer, tmp_path: Path) -> None:
    near = open_packed(f"{tmp_path}/served/set:train")
    expected = near.read_many(range(len(near)))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    far = open_packed("s3://scans/set:train", cache=cache)
    assert bucket.seen["GET /scans"] == 1  # one listing tells the sizes of all shards
    assert not any("HEAD" in name and name.endswith(".tar") for name in bucket.seen)
    bucket.faults.extend(FAULTS)
    assert far.read_many(range(len(near))) == expected
    assert not bucket.faults
    assert verify("s3://scans/set", cache)["bad"] == {}


def test_s3_tells_what_is_missing_and_what_is_forbidden_at_once(
    bucket: FaultyServer, moto_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    cache = CacheConfig(folder=str(tmp_path / "cache"), bytes=0)
    far = open_packed("s3://scans/set:train", cache=cache)
    bucket.faults.append(Fault(status=403))
    with pytest.raises(DataError, match=r"s3://scans/set/train-0\.tar: access denied .*AWS_PROFILE"):
        far.read(0)
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{moto_port}").delete_object(
        Bucket="scans", Key="set/train-0.tar"
    )
    asked = bucket.gets()
    with pytest.raises(DataError, match=r"s3://scans/set/train-0\.tar is not there"):
        far.read(0)
    assert bucket.gets() == asked + 1
    with pytest.raises(UsageError, match="s3://no-such-bucket/set is not a packed data set"):
        open_packed("s3://no-such-bucket/set", cache=cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"access denied \(NoCredentialsError.*FSSPEC_S3_ANON"):
        open_packed("s3://scans/set:train", cache=cache)


def test_google_storage_gives_the_bytes_of_the_files_whatever_goes_wrong(
    make_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    make_set()
    near = open_packed(f"{tmp_path}/served/set:train")
    with FaultyServer(tmp_path / "served") as server:
        monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon", "endpoint_url": server.url})
        server.google = True
        cache = CacheConfig(folder=str(tmp_path / "cache"))
        far = open_packed("gs://scans/set:train", cache=cache)
        server.faults.extend(FAULTS)
        assert far.read_many(range(len(near))) == near.read_many(range(len(near)))
        assert not server.faults
        other = open_packed("gs://scans/set:val", cache=cache)
        server.faults.append(Fault(status=403))
        with pytest.raises(DataError, match=r"gs://scans/set/val-0.tar: access denied"):
            other.read(0)
