"""Naming tars: whatever one would type, and nothing that runs a command."""

from pathlib import Path

import pytest

from essa_dist.data.shard_urls import list_shards
from essa_dist.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["t-2.tar", "t-10.tar", "t-1.tar", ".hidden.tar", "notes.txt", "old.tar.gz"]:
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "src", ["", "/*.tar", "/t-{1..10..9}.tar /t-2.tar", "/t-[0-9]*.tar", "/t-{2,1,10,2}.tar"]
)
def test_the_same_tars_in_natural_order_however_they_are_named(folder: Path, src: str) -> None:
    named = [f"{folder}{part}" for part in src.split()] or str(folder)
    assert [Path(one).name for one in list_shards(named)] == ["t-1.tar", "t-2.tar", "t-10.tar"]


def test_a_file_url_is_a_path(folder: Path) -> None:
    assert list_shards((folder / "t-1.tar").as_uri()) == [str(folder / "t-1.tar")]


def test_braces_keep_their_zeros_in_a_url() -> None:
    assert list_shards("s3://bucket/x-{008..010}.tar") == [f"s3://bucket/x-{i:03}.tar" for i in (8, 9, 10)]


@pytest.mark.parametrize(
    ("src", "told"),
    [
        ("pipe:cat a.tar", "runs a command"),
        ("PIPE:cat a.tar", "runs a command"),
        ("ssh://host/a.tar", "path or a URL of file, s3"),
        ("simplecache::s3://b/a.tar", "path or a URL"),
        ("a.tar", "no such file"),
        ("{folder}/old.tar.gz", "compressed.*gunzip"),
        ("{folder}/t-{{1..99999999}}.tar", "more than 1000000 shards"),
    ],
)
def test_what_is_no_tar_to_be_read_is_refused_in_one_line(folder: Path, src: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        list_shards(src.format(folder=folder))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_allowed_only_where_that_is_said() -> None:
    assert list_shards("pipe:cat {a,b}.tar", allow_pipe=True) == ["pipe:cat {a,b}.tar"]


def test_a_folder_without_tars_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tars in"):
        list_shards(str(tmp_path))
    (tmp_path / "a.tgz").touch()
    with pytest.raises(UsageError, match="compressed"):
        list_shards(str(tmp_path))
