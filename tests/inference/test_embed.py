"""`essa embed`: features of any images as files."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError
from essa_dist.evaluation.features import extract_features
from essa_dist.export.models import load_model
from essa_dist.inference import read_embeddings
from tests.distributed.launching import rank_environments
from tests.inference.conftest import Forked, contents

Write = Callable[..., dict[str, Any]]


def words(out: Path, images: object, weights: str) -> list[str]:
    given = {"model": weights, "images": images, "out": out, "image_size": 32, "device": "cpu"}
    return ["embed", *(f"{key}={value}" for key, value in given.items()), "batch_size=3", "part_items=2"]


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("format", ["parquet", "npz"])
def test_features_are_those_of_the_plain_loop(
    packed: str, weights: str, tmp_path: Path, write_features: Write, format: str, pooling: Any
) -> None:
    write_features("out", images=f"{packed}:train", format=format, pooling=pooling)
    keys, features = read_embeddings(tmp_path / "out")
    images = open_packed(f"{packed}:train")
    plain = extract_features(load_model(weights), images, image_size=32, pooling=pooling)
    assert keys == list(plain.keys)
    np.testing.assert_allclose(features, plain.features.numpy(), atol=1e-5)


def test_files_give_the_features_of_their_packed_set(
    folder: Path, packed: str, tmp_path: Path, write_features: Write
) -> None:
    write_features("files", images=str(folder), part_items=100, batch_size=1)
    write_features("set", images=packed, part_items=100, batch_size=1)
    files, stored = read_embeddings(tmp_path / "files"), read_embeddings(tmp_path / "set")
    by_key = {key.rpartition(".")[0]: row for key, row in zip(*files, strict=True)}
    assert len(by_key) == 13
    assert sorted(by_key) == sorted(stored.keys)
    for key, row in zip(*stored, strict=True):
        assert np.array_equal(by_key[key], row), key


def test_patches_keep_their_places(packed: str, weights: str, tmp_path: Path, write_features: Write) -> None:
    write_features("out", images=f"{packed}:test", pooling="patches", dtype="fp16")
    features = read_embeddings(tmp_path / "out").features
    model, images = load_model(weights), open_packed(f"{packed}:test")
    assert features.shape == (len(images), 4, model.embed_dim)
    assert features.dtype == np.float16
    mean = extract_features(model, images, image_size=32, pooling="mean").features.numpy()
    np.testing.assert_allclose(features.astype(np.float32).mean(axis=1), mean, atol=5e-3)


def test_pandas_and_pyarrow_read_one_table_with_what_the_set_knows(
    packed: str, tmp_path: Path, write_features: Write
) -> None:
    write_features("out", images=packed)
    table = pq.read_table(tmp_path / "out" / "features")
    frame = pd.read_parquet(tmp_path / "out" / "features")
    assert frame["key"].tolist() == table["key"].to_pylist() == read_embeddings(tmp_path / "out").keys
    assert pyarrow.types.is_fixed_size_list(table.schema.field("feature").type)
    images = {split: open_packed(f"{packed}:{split}") for split in ("train", "test")}
    for split, one in images.items():
        rows = frame[frame["split"] == split]
        assert rows["key"].tolist() == list(one.keys)
        assert one.labels is not None
        assert rows["label"].tolist() == one.labels.tolist()
    about = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert about["classes"] == ["cat", "dog"]
    assert about["rows"] == sum(part["rows"] for part in about["parts"]) == 13


def test_a_killed_call_goes_on_and_ends_in_the_same_bytes(folder: Path, weights: str, tmp_path: Path) -> None:
    with Forked(words(tmp_path / "straight", folder, weights)) as straight:
        assert straight.exit_code() == 0
    out = tmp_path / "killed"
    with Forked(words(out, folder, weights), pause_s=0.3) as killed:
        killed.stop_when((out / "journal" / "00002.json").exists, signal.SIGKILL)
    assert not (out / "embeddings.json").exists()
    with pytest.raises(UsageError, match="resume=true"):
        read_embeddings(out)
    finished = (out / "features" / "part-00001.parquet").stat().st_mtime_ns
    with Forked([*words(out, folder, weights), "resume=true"]) as resumed:
        assert resumed.exit_code() == 0
    assert contents(out) == contents(tmp_path / "straight")
    assert (out / "features" / "part-00001.parquet").stat().st_mtime_ns == finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_so_that_it_can_go_on(
    folder: Path, weights: str, tmp_path: Path, number: signal.Signals
) -> None:
    with Forked(words(tmp_path / "out", folder, weights), pause_s=0.5) as stopped:
        stopped.stop_when((tmp_path / "out" / "journal" / "00000.json").exists, number)
        assert stopped.exit_code() == 75
    with Forked([*words(tmp_path / "out", folder, weights), "resume=true"]) as resumed:
        assert resumed.exit_code() == 0
    assert len(read_embeddings(tmp_path / "out").keys) == 13


def test_two_processes_write_what_one_writes(folder: Path, weights: str, tmp_path: Path) -> None:
    with Forked(words(tmp_path / "one", folder, weights)) as one:
        assert one.exit_code() == 0
    each = [
        Forked(words(tmp_path / "two", folder, weights), told, pause_s=0.2) for told in rank_environments(2)
    ]
    with each[0], each[1]:
        assert [rank.exit_code() for rank in each] == [0, 0]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_damaged_part_is_made_again(folder: Path, tmp_path: Path, write_features: Write) -> None:
    write_features("out", images=str(folder))
    before = contents(tmp_path / "out")
    part = tmp_path / "out" / "features" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-7])
    assert write_features("out", images=str(folder), resume=True)["made_here"] == 4
    assert contents(tmp_path / "out") == before
    assert write_features("out", images=str(folder), resume=True)["made_here"] == 0


def test_broken_files_are_named_and_the_rest_is_made(
    folder: Path, tmp_path: Path, write_features: Write
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:60])
    (images / "dog" / "x.jpg").write_bytes(b"")
    assert write_features("out", images=str(images))["left_out"] == 2
    left = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert left["path"].tolist() == ["cat/3.png", "dog/x.jpg"]
    assert left["reason"][1] == "empty file"
    assert set(read_embeddings(tmp_path / "out").keys).isdisjoint(left["path"])
    with pytest.raises(DataError, match=r"2 of 14 images can't be read, and quota allows 1"):
        write_features("strict", images=str(images), quota={"count": 1})


def test_nothing_readable_is_an_error(tmp_path: Path, write_features: Write) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 1 images can be read; a.png"):
        write_features("out", images=str(tmp_path / "images"))
    assert pd.read_csv(tmp_path / "out" / "quarantine.csv")["path"].tolist() == ["a.png"]


def test_a_set_on_a_server_gives_the_features_of_the_local_one(
    packed: str, tmp_path: Path, write_features: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.data.remote.faulty_server import FaultyServer

    monkeypatch.setenv("ESSA_CACHE", str(tmp_path / "cache"))
    with FaultyServer(Path(packed).parent) as server:
        write_features("remote", images=f"{server.url}/set")
    write_features("local", images=packed)
    remote, local = read_embeddings(tmp_path / "remote"), read_embeddings(tmp_path / "local")
    assert remote.keys == local.keys
    assert np.array_equal(remote.features, local.features)


def test_a_folder_is_never_replaced_or_mixed_unasked(
    folder: Path, tmp_path: Path, write_features: Write
) -> None:
    write_features("out", images=str(folder))
    with pytest.raises(UsageError, match=r"exists: choose another, or say resume=true or overwrite=true"):
        write_features("out", images=str(folder))
    with pytest.raises(UsageError, match=r"image_size was 32, is 48"):
        write_features("out", images=str(folder), resume=True, image_size=48)
    assert write_features("out", images=str(folder), overwrite=True, image_size=48)["images"] == 13
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="has not written"):
        write_features("mine", images=str(folder), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_what_does_not_fit_leaves_no_folder(folder: Path, tmp_path: Path, write_features: Write) -> None:
    with pytest.raises(UsageError, match="is not a multiple of the patch size"):
        write_features("out", images=str(folder), image_size=33)
    with pytest.raises(UsageError, match=r"images=.*nowhere is not there"):
        write_features("out", images=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, write_features: Write
) -> None:
    from safetensors.torch import save_file

    from essa_dist.errors import DivergedError

    state = {name: t.clone() for name, t in load_model("test_vit@random").vit.state_dict().items()}
    state["norm.bias"][0] = torch.nan
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(DivergedError, match="not finite, first for"):
        write_features("out", images=str(folder), model=f"test_vit@{tmp_path / 'bad.safetensors'}")
