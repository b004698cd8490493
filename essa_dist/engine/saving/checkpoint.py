"""Checkpoints: a folder that is complete or absent, holding what was trained and never a frozen weight.

``student``, ``teacher`` (trained tensors of trunk and heads), ``buffers`` (centres, head standardisation, adapter
rows) and ``optimizer`` are safetensors files of whole tensors, whatever strategy and number of ranks they come from;
the rest is JSON: nothing in a checkpoint can execute, and no other file in its folder is ever opened.
Random state is not stored, because every step's is a function of the seed and the step.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from essa_dist.backbones.weights import file_sha256
from essa_dist.disk import flush
from essa_dist.engine.saving.tensorfile import TensorFile
from essa_dist.errors import UsageError
from essa_dist.runfolder import CHECKPOINTS, MARKER, best_checkpoint, committed_checkpoints

STATE = "state.json"
FILES = ("student", "teacher", "buffers", "optimizer")
NEEDED = ("step", "trunk_sha256", "weights_source")
"""Keys of the state without which nothing can go on."""


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


def tensor_file(folder: Path, file: str) -> Path:
    """Where one of FILES lies in a checkpoint."""
    return folder / f"{file}.safetensors"


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint. Raises UsageError when it is not what was written."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{STATE} can't be read ({error})") from error
    lacking = [key for key in NEEDED if key not in state] if isinstance(state, dict) else list(NEEDED)
    if lacking:
        raise damaged(folder, f"{STATE} lacks {', '.join(lacking)}")
    files = state.get("files", {})
    known = isinstance(files, dict) and all(
        isinstance(file, dict) and {"bytes", "sha256"} <= file.keys() for file in files.values()
    )
    if type(state["step"]) is not int or not known:
        raise damaged(folder, f"{STATE} is not as it was written")
    return state  # type: ignore[no-any-return]


def check_files(folder: Path, state: Mapping[str, Any]) -> None:
    """UsageError unless the files are byte for byte what was written; checkpoints of before had no checksums.

    0.7 s for 1 GB, where the processor has instructions for SHA-256.
    """
    for file in FILES:
        path = tensor_file(folder, file)
        if not path.is_file():
            raise damaged(folder, f"{path.name} is missing")
        written = state.get("files", {}).get(path.name)
        if not written:
            continue
        if (size := path.stat().st_size) != written["bytes"]:
            raise damaged(folder, f"{path.name} has {size} bytes, {written['bytes']} were written")
        if file_sha256(path) != written["sha256"]:
            raise damaged(folder, f"{path.name} has another checksum than what was written")


def damaged(folder: Path, what: str) -> UsageError:
    """A complete checkpoint that is no longer what was written: never passed over in silence."""
    earlier = [other for other in sorted(folder.parent.glob("step_????????")) if other < folder]
    earlier = [other for other in earlier if (other / MARKER).is_file()]
    way = f"go on from {earlier[-1].name}" if earlier else "begin anew: there is no earlier one"
    return UsageError(
        f"checkpoint {folder} is damaged: {what}; put the file back, or delete the folder to {way}"
    )
