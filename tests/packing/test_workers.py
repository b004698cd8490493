"""Several processes give what one does, and survive what a file does to a decoder."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.errors import DataError
from essa_dist.packing.pack import PackConfig, pack

ImageFolder = Callable[..., Path]

FAULT = """
import os, sys
def fault(event, arguments):
    if event == "open" and str(arguments[0]).endswith("fault.png"):
        os.kill(os.getpid(), {signal})
sys.addaudithook(fault)
"""


def packed(src: Path, out: Path, **settings: object) -> dict[str, bytes]:
    fields = {"src": str(src), "out": str(out), "name": "set", "shard_bytes": 30_000, "report": False}
    pack(PackConfig.model_validate(fields | settings))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def fail_with(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that open ``fault.png`` die by this signal."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FAULT.format(signal=int(number)))
    monkeypatch.syspath_prepend(tmp_path / "hook")


def test_a_file_that_crashes_its_decoder_is_left_out_and_all_else_is_as_made_by_one_process(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({".": 40})
    (source / "bad.png").write_text("no image")
    alone = packed(source, tmp_path / "alone", workers=0)
    (source / "fault.png").write_bytes((source / "0.png").read_bytes())
    fail_with(signal.SIGSEGV, tmp_path, monkeypatch)
    shared = packed(source, tmp_path / "shared", workers=2)
    assert b"fault.png,its decoder crashed (SIGSEGV)\n" in shared["quarantine.csv"]
    differing = {name for name in alone | shared if alone.get(name) != shared.get(name)}
    assert differing == {"manifest.json", "quarantine.csv"}


def test_a_worker_that_is_killed_ends_the_pack_with_one_line(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder({".": 3})
    (source / "fault.png").write_bytes((source / "0.png").read_bytes())
    fail_with(signal.SIGKILL, tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"ended \(SIGKILL\) while it read \S+fault.png: out of memory\?"):
        packed(source, tmp_path / "out", workers=1)
