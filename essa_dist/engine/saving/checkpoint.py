"""Checkpoints: a folder that is complete or absent, holding what was trained and never a frozen weight.

``student``, ``teacher`` (trained tensors of trunk and heads), ``buffers`` (centres, head standardisation, adapter
rows) and ``optimizer`` are safetensors files of whole tensors, whatever strategy and number of ranks they come from;
the rest is JSON: nothing in a checkpoint can execute, and no other file in its folder is ever opened. Read back by
``export.saved``.
Random state is not stored, because every step's is a function of the seed and the step.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from essa_dist.disk import flush
from essa_dist.engine.saving.tensorfile import TensorFile
from essa_dist.export.saved import FILES, STATE, tensor_file
from essa_dist.runfolder import CHECKPOINTS, MARKER, best_checkpoint, committed_checkpoints


@contextmanager
def committing(folder: Path) -> Iterator[Path]:
    """A folder to write a checkpoint's files into, which then becomes ``folder``, all of it flushed to disk.

    The files must have been flushed. The marker is written last and the renaming is atomic, so that a kill or a full
    disk at any moment leaves the earlier checkpoints and no half one. Raises OSError, with the path; nothing is left
    behind then. What a killed process left is removed by :func:`sweep`.
    """
    temporary, before = (folder.with_name(f".{folder.name}.{what}.writing") for what in ("new", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()  # not its parents: an output folder that has vanished is an error
        yield temporary
        with (temporary / MARKER).open("wb"):
            pass
        flush(temporary / MARKER)
        flush(temporary)
        if folder.exists():  # of the same step; it is not deleted before the new one is in its place
            folder.rename(before)
        temporary.rename(folder)
        flush(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(error.errno, error.strerror, str(error.filename or folder)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write(
    folder: Path,
    tensors: Mapping[str, Mapping[str, tuple[str, Sequence[int]]]],
    pieces: Callable[[str], Iterable[Tensor]],
    state: Mapping[str, Any],
) -> int:
    """Write a checkpoint at ``folder``; returns its size in bytes. Raises OSError as :func:`committing` does.

    ``tensors``: of each file the names, dtypes and shapes; ``pieces``: of each file, called in their order, the bytes
    of its tensors in the order of :func:`essa_dist.engine.saving.tensorfile.in_order`.
    """
    files: dict[str, Any] = {}
    with committing(folder) as temporary:
        for file in FILES:
            path = tensor_file(temporary, file)
            with TensorFile(path, tensors[file]) as written:
                for piece in pieces(file):
                    written.write(piece)
                files[path.name] = written.finish()
        text = json.dumps({**state, "files": files}, indent=1)
        (temporary / STATE).write_text(text)
        flush(temporary / STATE)
    return len(text) + sum(int(file["bytes"]) for file in files.values())


def sweep(run: Path) -> None:
    """Delete what interrupted writes and deletions have left."""
    checkpoints = run / CHECKPOINTS
    for folder in (*checkpoints.glob(".step_*.writing"), *checkpoints.glob("step_????????")):
        if not (folder.name.startswith("step_") and (folder / MARKER).exists()):
            shutil.rmtree(folder, ignore_errors=True)


def prune(run: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints and the one that is marked best."""
    best = best_checkpoint(run)
    for folder in committed_checkpoints(run)[:-keep]:
        if folder == best:
            continue
        (folder / MARKER).unlink()  # no longer a checkpoint, whatever happens from here on
        shutil.rmtree(folder)
