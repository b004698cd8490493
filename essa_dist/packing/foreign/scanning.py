"""Scan many tars: in parallel, with progress, going on where a killed run was."""

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

from essa_dist.data.shard_urls import scheme
from essa_dist.errors import DataError
from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.scan import ShardScan, scan
from essa_dist.packing.progress import PackProgress

SCAN_VERSION = 2
"""Of the scans kept between runs; raise it when :class:`ShardScan` changes."""
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def scan_all(shards: Sequence[str], config: IndexConfig, work: Path) -> dict[str, ShardScan]:
    """The scan of each tar, in the order of ``shards``. Scans are kept in ``work``, and taken from there.

    A tar that crashes a decoder is a bad one. Raises DataError where a process was killed.
    """
    kept = {shard: _kept_as(shard, config, work) for shard in shards}
    found = {shard: one for shard in shards if (one := _read(kept[shard])) is not None}
    todo = [shard for shard in shards if shard not in found]
    with PackProgress(len(shards), len(found)) as progress, closing(_scans(todo, config)) as scans:
        for shard, one in scans:
            _write(one, kept[shard])
            found[shard] = one
            progress.images += len(one.rows)
            progress.left_out += len(one.bad)
            progress.bytes += one.bytes
            progress.update(len(found))
    return {shard: found[shard] for shard in shards}


def _scans(shards: Sequence[str], config: IndexConfig) -> Generator[tuple[str, ShardScan], None, None]:
    """In the order in which they are done."""
    workers = min(config.workers, len(shards))
    if workers <= 1:
        for shard in shards:
            yield shard, scan(shard, config)
        return
    scanners = [_Scanner(config) for _ in range(workers)]
    free: queue.SimpleQueue[_Scanner] = queue.SimpleQueue()
    for scanner in scanners:
        free.put(scanner)

    def work(shard: str) -> ShardScan:
        scanner = free.get()
        try:
            return scanner.scan(shard)
        finally:
            free.put(scanner)

    with ThreadPoolExecutor(workers) as pool:
        try:
            tasks = {pool.submit(work, shard): shard for shard in shards}
            for done in as_completed(tasks):
                yield tasks[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for scanner in scanners:
                scanner.end()


class _Scanner:
    """A process that scans one tar after the other: takes a line with its name, answers with a line of JSON.

    A program of its own, because a fork takes torch's threads with it, and multiprocessing's other ways would run the
    user's script again.
    """

    def __init__(self, config: IndexConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def scan(self, shard: str) -> ShardScan:
        """The scan of one tar; DataError where the process was killed."""
        if self._process is None:
            self._process = _start(self._config)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(shard).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (BrokenPipeError, ValueError):
            answer = b""
        if answer:
            return ShardScan.from_json(json.loads(answer))
        code, self._process = process.wait(), None
        if -code in _CRASHES:
            return ShardScan(bad=[("", f"crashes the decoder ({signal.Signals(-code).name})")])
        raise DataError(
            f"the process that scanned {shard} was killed (exit {code}), most often for want of memory: lower workers; "
            "what was scanned is kept, so run the same again"
        )

    def end(self) -> None:
        """End the process, in the middle of a tar too: it holds nothing that could be lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _start(config: IndexConfig) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "essa_dist.packing.foreign.worker", config.model_dump_json()]
    # What decoders written in C say of broken images is not for the screen.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
    )


def _environment() -> dict[str, str]:
    """This process's, where the package is found as it is here."""
    package = str(Path(__file__).parents[3])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def _kept_as(shard: str, config: IndexConfig, work: Path) -> Path | None:
    """The file that keeps the scan of a tar as it is now; None: nothing tells whether it will have changed."""
    try:
        if scheme(shard):
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(shard)
            state = str(filesystem.ukey(path))
        else:
            status = os.stat(shard)
            state = f"{status.st_size}/{status.st_mtime_ns}"
    except Exception:  # storage of any kind; the scan will say what is wrong
        return None
    told = json.dumps([SCAN_VERSION, shard, state, config.reading()])
    return work / f"{hashlib.sha256(told.encode()).hexdigest()}.json"


def _read(path: Path | None) -> ShardScan | None:
    if path is None:
        return None
    try:
        return ShardScan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none, or half of one


def _write(one: ShardScan, path: Path | None) -> None:
    if path is None:
        return
    half = path.with_suffix(".half")
    half.write_text(json.dumps(one.as_json()), encoding="utf-8")
    os.replace(half, path)
