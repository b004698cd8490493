"""Opening a set at an address: what is fetched, when it is fetched anew, and what makes room for it."""

import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault

from essa_dist.data.manifest import read_manifest
from essa_dist.data.remote import CacheConfig, open_remote, verify
from essa_dist.data.remote.urls import hub_address, join, shown, split_ref
from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("ref", "url", "split"),
    [
        ("s3://bucket/packed", "s3://bucket/packed", None),
        ("s3://bucket/packed/:val", "s3://bucket/packed", "val"),
        ("http://host:8000/a:b/packed:val", "http://host:8000/a:b/packed", "val"),
        ("http://host:8000/packed", "http://host:8000/packed", None),
        ("https://me:pass@host:1/packed:val?sig=a:b/c", "https://me:pass@host:1/packed?sig=a:b/c", "val"),
        ("hf://datasets/me/name@v1/packed:test", "hf://datasets/me/name@v1/packed", "test"),
    ],
)
def test_a_reference_is_an_address_and_perhaps_a_split(ref: str, url: str, split: str | None) -> None:
    assert split_ref(ref) == (url, split)


def test_names_of_a_manifest_are_found_beside_it_and_never_on_this_machine() -> None:
    assert join("https://host/a?sig=1", "sub/x y.tar") == "https://host/a/sub/x%20y.tar?sig=1"
    assert join("s3://bucket/a", "x y.tar") == "s3://bucket/a/x y.tar"
    assert join("s3://bucket/a", "gs://other/x.tar") == "gs://other/x.tar"
    for file in ("/etc/passwd", "../x.tar", "a/../../x.tar"):
        with pytest.raises(DataError, match="outside of the set"):
            join("s3://bucket/a", file)


def test_addresses_are_shown_without_their_secrets() -> None:
    text = "can't reach https://me:pa%20ss@host/a.tar?X-Sig=1&k=2, (s3://bucket/b) or 'http://host/c?d'"
    assert shown(text) == "can't reach https://host/a.tar, (s3://bucket/b) or 'http://host/c'"


def test_addresses_of_the_hub_name_kind_repository_and_revision() -> None:
    assert hub_address("hf://datasets/me/it@v1/p/x.tar").endswith("/datasets/me/it/resolve/v1/p/x.tar")
    assert hub_address("hf://me/it/x.tar").endswith("/me/it/resolve/main/x.tar")
    with pytest.raises(UsageError, match="OWNER/NAME"):
        hub_address("hf://datasets/it/x.tar")


def test_the_hub_is_asked_once_where_a_file_is_and_again_when_the_answer_expires(
    make_set: Any, server: Any, open_it: Any, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ranges = make_set(shards=(9, 1))
    hub = tmp_path / "served" / "datasets" / "me" / "it" / "resolve" / "main" / "set"
    shutil.copytree(tmp_path / "served" / "set", hub)
    shards = open_it("hf://datasets/me/it/set", bytes=0, concurrency=1)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    hop = Fault(status=302, headers=(("Location", f"{elsewhere}/set/train-0.tar?sig=1"),))
    server.faults.append(hop)
    expected = local().read(ranges)
    server.seen.clear()
    for i in range(3):
        assert shards.read([ranges[i]]) == [expected[i]]
    assert server.gets("resolve/main/set/train-0.tar") == 1
    server.faults.extend([Fault(status=403), hop])
    assert shards.read([ranges[4]]) == [expected[4]]
    assert server.gets("resolve/main/set/train-0.tar") == 2
    assert server.tokens == {"resolve": "Bearer hf_secret", "set": None}


def test_manifest_and_index_are_fetched_once_and_anew_when_they_change(
    make_set: Any, server: Any, open_it: Any, tmp_path: Path
) -> None:
    make_set()
    first = open_it().folder
    fetched = server.gets("index.arrow")
    again = open_it().folder
    assert (again, server.gets("index.arrow")) == (first, fetched + 1)  # its version is asked for
    for name in ("manifest.json", "index.arrow"):
        assert (first / name).read_bytes() == (tmp_path / "served" / "set" / name).read_bytes()
    make_set(seed=1)
    other = open_it().folder
    assert other != first
    assert (other / "manifest.json").read_bytes() == (tmp_path / "served/set/manifest.json").read_bytes()


def _open_and_read(url: str, folder: Path, results: Any) -> None:
    images = open_packed(f"{url}:train", cache=CacheConfig(folder=str(folder)))
    results.put(hashlib.sha256(b"".join(images.read_many(range(len(images))))).hexdigest())


def test_ranks_that_open_a_set_together_fetch_its_index_once_and_read_the_same(
    make_set: Any, server: Any, tmp_path: Path
) -> None:
    make_set()
    server.latency = 0.02
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (server.url + "/set", tmp_path / "cache", results)
    ranks = [context.Process(target=_open_and_read, args=arguments) for _ in range(3)]
    for rank in ranks:
        rank.start()
    digests = {results.get(timeout=30) for _ in ranks}
    for rank in ranks:
        rank.join(10)
    assert len(digests) == 1
    assert server.gets("index.arrow") == 3 + 1  # each asks for its version
    near = open_packed(f"{tmp_path}/served/set:train")
    assert digests == {hashlib.sha256(b"".join(near.read_many(range(len(near))))).hexdigest()}


def test_a_set_that_nobody_reads_gives_way_and_one_in_use_stays(
    make_set: Any, server: Any, open_it: Any
) -> None:
    folders = []
    for number in range(3):
        ranges = make_set(f"set{number}", shards=(8, 1), sizes=(5000, 6000), seed=number)
        shards = open_it(f"{server.url}/set{number}", bytes=10**9)
        shards.read(ranges)
        os.utime(shards.folder / "in_use", (number, number))
        folders.append(shards.folder)
        if number == 1:
            used = shards
    del shards
    make_set("set3", shards=(8, 1), sizes=(5000, 6000), seed=3)
    for bound, left in ((250_000, [False, True, True]), (170_000, [False, True, False])):  # 90 kB each
        open_it(f"{server.url}/set3", bytes=bound)
        assert [folder.exists() for folder in folders] == left
    assert used.read(ranges[:0]) == []


@pytest.mark.parametrize("change", ["vanished", "shorter"])
def test_a_wrong_shard_is_named_when_the_set_is_opened_unless_it_is_of_another_split(
    change: str, make_set: Any, server: Any, tmp_path: Path
) -> None:
    make_set()
    tar = tmp_path / "served" / "set" / "train-1.tar"
    tar.unlink() if change == "vanished" else tar.write_bytes(tar.read_bytes()[:-512])
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"/set/train-1\.tar is (not there|damaged)"):
        open_packed(f"{server.url}/set:train", cache=cache)
    assert len(open_packed(f"{server.url}/set:val", cache=cache)) == 4


def test_a_place_without_a_set_and_a_protocol_nobody_knows_are_refused_in_one_line(
    server: Any, tmp_path: Path
) -> None:
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="/nothing is not a packed data set"):
        open_packed(f"{server.url}/nothing", cache=cache)
    with pytest.raises(UsageError, match=r"ftp:// can't be read; use a local folder or s3://"):
        open_packed("ftp://user:hunter2@host/packed", cache=cache)


def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"pip install 'essa-dist\[s3\]'"):
        open_remote("s3://bucket/packed", CacheConfig(folder=str(tmp_path)))


def test_a_cache_that_can_not_be_written_is_refused_with_the_setting_to_change(
    make_set: Any, open_it: Any, tmp_path: Path
) -> None:
    make_set()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"data\.cache\.folder"):
        open_it(folder=str(tmp_path / "file" / "cache"))


def test_a_local_set_whose_shards_are_elsewhere_is_read_from_there(
    make_set: Any, server: Any, local: Any, tmp_path: Path
) -> None:
    ranges = make_set()
    expected = local().read(ranges)
    indexed = tmp_path / "indexed"
    indexed.mkdir()
    shutil.copy(tmp_path / "served" / "set" / "index.arrow", indexed)
    fields = json.loads((tmp_path / "served" / "set" / "manifest.json").read_text())
    for shard in fields["shards"]:
        shard["file"] = f"{server.url}/set/{shard['file']}"
    (indexed / "manifest.json").write_text(json.dumps(fields))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    images = open_packed(f"{indexed}:train", cache=cache)
    assert images.read_many(range(12)) == expected[:12]
    assert sorted(path.name for path in indexed.iterdir()) == ["index.arrow", "manifest.json"]
    fields["shards"][0]["file"] = "train-0.tar"
    (indexed / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="both here"):
        open_packed(f"{indexed}:train", cache=cache)


def test_verify_names_every_shard_that_differs_from_its_checksum_near_and_far(
    make_set: Any, server: Any, tmp_path: Path
) -> None:
    make_set(shards=(3, 3, 3, 3))
    folder, cache = tmp_path / "served" / "set", CacheConfig(folder=str(tmp_path / "cache"))
    for ref in (str(folder), server.url + "/set"):
        assert verify(ref, cache)["bad"] == {}
    shards = read_manifest(folder).shards
    data = bytearray((folder / shards[1].file).read_bytes())
    data[700] ^= 1
    (folder / shards[1].file).write_bytes(data)
    (folder / shards[2].file).unlink()
    done: list[str] = []
    for ref in (str(folder), server.url + "/set"):
        found = verify(ref, cache, progress=lambda shard: done.append(shard.file))
        assert list(found["bad"]) == [shards[1].file, shards[2].file]
        assert "SHA-256" in found["bad"][shards[1].file]
    assert done == 2 * [shard.file for shard in shards]


def test_an_index_of_another_manifest_is_refused_near_and_far_until_both_belong_together(
    make_set: Any, server: Any, open_it: Any, tmp_path: Path
) -> None:
    make_set()
    folder, cache = tmp_path / "served" / "set", CacheConfig(folder=str(tmp_path / "cache"))
    whole = (folder / "index.arrow").read_bytes()
    make_set("other", seed=1)
    (folder / "index.arrow").write_bytes((tmp_path / "served/other/index.arrow").read_bytes())
    with pytest.raises(DataError, match=r"index\.arrow is not the one of manifest\.json"):
        open_it()
    assert list(verify(str(folder), cache)["bad"]) == ["index.arrow"]
    (folder / "index.arrow").write_bytes(whole)
    assert (open_it().folder / "index.arrow").read_bytes() == whole
    assert verify(str(folder), cache)["bad"] == {}


def test_a_set_at_two_addresses_shares_its_local_copies(make_set: Any, server: Any, open_it: Any) -> None:
    ranges = make_set()
    make_set("copy")  # the same bytes, of another date
    images = [one for one in ranges if one.shard < 2]
    expected = open_it().read(images)
    copy = open_it(server.url + "/copy")
    server.faults.extend([Fault(status=404)] * 20)  # nothing is asked for again
    assert copy.read(images) == expected
