"""A pack that is broken off goes on, and ends with the bytes of one that wasn't."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.data.shards import open_packed
from essa_dist.errors import DataError, UsageError
from essa_dist.packing.lock import locked
from essa_dist.packing.pack import PackConfig, pack
from essa_dist.packing.writer import ShardWriter

ImageFolder = Callable[..., Path]


def packing(src: Path, out: Path, **settings: object) -> PackConfig:
    fields = {"src": str(src), "out": str(out), "name": "set", "shard_bytes": 20_000, "report": False}
    return PackConfig.model_validate(fields | settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise ``error`` in place of the sample after ``count``."""
    add, added = ShardWriter.add, []

    def limited(self: ShardWriter, sample: object) -> None:
        if len(added) == count:
            raise error
        added.append(sample)
        add(self, sample)

    monkeypatch.setattr(ShardWriter, "add", limited)


KILLED = """
import os, random, signal, sys
from essa_dist.packing.pack import PackConfig, pack

TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
rng, kills = random.Random(0), 0

def touched(event, arguments):
    global left
    if event in TOUCHES and ".partial" in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

for given in sys.argv[1:]:
    config = PackConfig.model_validate_json(given)
    while not os.path.exists(config.out):
        left = rng.randrange(5, 80)
        child = os.fork()  # before anything has started a thread; importing in each child would take minutes
        if child == 0:
            sys.addaudithook(touched)
            pack(config)
            os._exit(0)
        kills += os.waitpid(child, 0)[1] != 0
        assert kills < 500
print(kills)
"""


def test_kills_at_any_touch_of_a_file_change_no_byte(image_folder: ImageFolder, tmp_path: Path) -> None:
    source = image_folder({"a": 8, "b": 4})
    (source / "a" / "bad.png").write_text("no image")
    (source / "b" / "bad.png").write_text("no image")
    splits = {"splits": {"train": 0.6, "test": 0.4}}
    pack(packing(source, tmp_path / "whole", **splits))
    configs = [packing(source, tmp_path / f"killed{i}", **splits) for i in range(2)]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            *(config.model_dump_json(exclude_defaults=True) for config in configs),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) > 6
    for config in configs:
        assert contents(Path(config.out)) == contents(tmp_path / "whole")


def test_only_unfinished_shards_are_packed_again_and_it_says_so(
    image_folder: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    source, out = image_folder({".": 9}), tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(7, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            pack(packing(source, out))
    assert "the same command goes on" in caplog.text
    finished = {path.name: path.stat().st_ino for path in (tmp_path / ".out.partial" / "set").iterdir()}
    assert len(finished) == 2
    pack(packing(source, out))
    assert "going on after the 6 images in 2 tars" in caplog.text
    assert {name: (out / name).stat().st_ino for name in finished} == finished
    assert len(open_packed(str(out))) == 9


@pytest.mark.parametrize("change", ["settings", "files"])
def test_a_changed_input_starts_anew_and_says_what_changed(
    image_folder: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    source, settings = image_folder({".": 9}), {}
    with monkeypatch.context() as patch:
        stop_after(7, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            pack(packing(source, tmp_path / "out"))
    if change == "settings":
        settings = {"image_size": 20}
    else:
        (source / "0.png").write_bytes((source / "1.png").read_bytes())
    pack(packing(source, tmp_path / "out", **settings))
    assert f"the {change} changed since: starting anew" in caplog.text
    pack(packing(source, tmp_path / "fresh", **settings))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_finished_shard_that_was_damaged_since_is_packed_again(
    image_folder: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    source = image_folder({".": 12})
    with monkeypatch.context() as patch:
        stop_after(10, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            pack(packing(source, tmp_path / "out"))
    tar = tmp_path / ".out.partial" / "set" / "unlabelled-000001.tar"
    whole = tar.read_bytes()
    if damage == "flip":
        tar.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    elif damage == "cut":
        tar.write_bytes(whole[:-512])
    else:
        tar.unlink()
    pack(packing(source, tmp_path / "out"))
    assert "unlabelled-000001.tar isn't as it was written" in caplog.text
    pack(packing(source, tmp_path / "fresh"))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_settings_that_change_no_shard_may_change_before_it_goes_on(
    image_folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = image_folder({".": 12})
    for i in range(3):
        (source / f"bad{i}.png").write_text("no image")
    with pytest.raises(DataError, match="quota"):
        pack(packing(source, tmp_path / "out", quota={"count": 2}))
    result = pack(packing(source, tmp_path / "out", quota={"count": 3}, licence="CC0"))
    assert "going on after" in caplog.text
    assert (result["samples"], sum(result["skipped"].values())) == (12, 3)


def test_a_full_disk_is_one_line_that_says_what_is_kept(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({".": 9})
    with monkeypatch.context() as patch:
        stop_after(7, OSError(errno.ENOSPC, "No space left on device"), patch)
        with pytest.raises(
            DataError, match=r"^no room .*6 images are finished and kept in \S+: make room.*$"
        ):
            pack(packing(source, tmp_path / "out"))
    # The tar that wasn't finished gives its room back.
    assert len(list((tmp_path / ".out.partial" / "set").iterdir())) == 2
    assert pack(packing(source, tmp_path / "out"))["samples"] == 9


def test_a_write_that_the_system_refuses_is_that_line_too(image_folder: ImageFolder, tmp_path: Path) -> None:
    config = packing(image_folder({".": 9}), tmp_path / "out", shard_bytes=10**6)
    program = (
        "import resource, sys; from essa_dist.packing.pack import PackConfig, pack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))\n"
        "pack(PackConfig.model_validate_json(sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, config.model_dump_json(exclude_defaults=True)],
        capture_output=True,
        text=True,
    )
    assert "DataError: no room for the packed set" in run.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_two_packs_into_one_folder_do_not_meet(image_folder: ImageFolder, tmp_path: Path) -> None:
    config = packing(image_folder({".": 4}), tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(UsageError, match=r"another pack into .* is running"):
        pack(config)
    assert pack(config)["samples"] == 4


PACK = """
import logging, sys
from essa_dist.packing.pack import PackConfig, pack
logging.basicConfig(level=logging.INFO, format="%(message)s")
pack(PackConfig.model_validate_json(sys.argv[1]))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_pack_and_say_nothing(
    image_folder: ImageFolder, tmp_path: Path, stop: signal.Signals
) -> None:
    source = image_folder({".": 60})
    # A worker that opens this hangs, as on a dead network disk: it takes it for an ordinary file.
    os.mkfifo(source / "waits.png")
    (tmp_path / "sitecustomize.py").write_text("import stat; stat.S_ISREG = lambda mode: True")
    config = packing(source, tmp_path / "out", workers=2)
    run = subprocess.Popen(
        [sys.executable, "-c", PACK, config.model_dump_json(exclude_defaults=True)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, *sys.path)))},
    )
    journal = tmp_path / ".out.partial" / "journal"
    deadline = time.monotonic() + 60
    while not (journal / "000000").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(run.pid)
    os.killpg(run.pid, stop)
    _, said = run.communicate(timeout=30)
    assert len(workers) == 2
    wait_for_end(workers)
    assert said.count("Traceback") == (
        stop == signal.SIGINT
    )  # the main process's own: it has no command around it
    assert json.loads((journal / "000000" / "record.json").read_text())["shard"]["count"] == 3


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def wait_for_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in processes):
        assert time.monotonic() < deadline, "a worker goes on"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
