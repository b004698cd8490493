"""The index's promises: mapped and not read, a view for each split, the same bytes for the same contents."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from essa_dist.data.index import Index, read_index
from essa_dist.errors import DataError


def an_index(n: int, classes: int = 0) -> Index:
    rows = np.arange(n, dtype=np.int64)
    flags = (rows[:, None] + np.arange(classes)) % 3 - 1
    return Index(
        shard=(rows // 10).astype(np.int32),
        offset=rows * 512,
        length=rows + 1,
        crc32=(rows + 7).astype(np.uint32),
        height=(rows + 30).astype(np.int32),
        width=(rows + 40).astype(np.int32),
        channels=np.where(rows % 2, 1, 3).astype(np.uint8),
        bits=np.where(rows % 2, 16, 8).astype(np.uint8),
        low=rows.astype(np.float32) / 3,
        high=rows.astype(np.float32) + 255,
        slope=np.full(n, -0.5, np.float32),
        intercept=rows.astype(np.float32) - 1024,
        label=(rows % 5 - 1).astype(np.int32),
        patient=(rows // 2).astype(np.int32),
        mask_offset=rows - 1,
        mask_length=rows * 2,
        key=[f"folder/é{i}" for i in range(n)],
        labels=flags.astype(np.int8) if classes else None,
    )


@pytest.mark.parametrize("classes", [0, 3])
def test_what_is_written_is_read_back_in_every_column(tmp_path: Path, classes: int) -> None:
    written = an_index(23, classes)
    written.write(tmp_path)
    read = read_index(tmp_path)
    for name, column in vars(written).items():
        found = getattr(read, name)
        if column is None:
            assert found is None
        elif name == "key":
            assert list(found) == column
        else:
            assert found.dtype == column.dtype
            assert np.array_equal(found, column), name


def test_a_range_of_samples_is_a_view_in_every_column(tmp_path: Path) -> None:
    an_index(23, classes=4).write(tmp_path)
    whole = read_index(tmp_path)
    part = whole.rows(5, 9)
    assert len(part) == 4
    assert list(part.key) == [f"folder/é{i}" for i in range(5, 9)]
    assert list(part.key[1:3]) == ["folder/é6", "folder/é7"]
    assert part.labels is not None
    assert part.labels.shape == (4, 4)
    for name in ("offset", "low", "labels"):
        assert np.shares_memory(getattr(part, name), getattr(whole, name))
    assert part.take(np.array([3, 0])).offset.tolist() == [8 * 512, 5 * 512]
    assert part.take(np.array([3, 0])).key == ["folder/é8", "folder/é5"]


def test_identical_contents_give_identical_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        an_index(50, classes=2).write(tmp_path / name)
    assert (tmp_path / "a" / "index.arrow").read_bytes() == (tmp_path / "b" / "index.arrow").read_bytes()


def test_a_cut_or_foreign_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.arrow can't be read"):
        read_index(tmp_path)
    an_index(50).write(tmp_path)
    path = tmp_path / "index.arrow"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no index at all" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"index\.arrow can't be read .*pack the data again") as caught:
            read_index(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_million_samples_take_no_memory_of_the_process_and_no_pandas(tmp_path: Path) -> None:
    an_index(1_000_000).write(tmp_path)
    code = (
        "import sys, pathlib, numpy, pyarrow.ipc\n"
        "from essa_dist.data.index import read_index\n"
        "def anonymous():\n"
        "    rows = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(row for row in rows if row.startswith('RssAnon')).split()[1]) // 1024\n"
        "before = anonymous()\n"
        "index = read_index(pathlib.Path(sys.argv[1]))\n"
        "assert index.key[999_999] == 'folder/é999999' and index.offset[999_999] == 999_999 * 512\n"
        "print(anonymous() - before, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    megabytes, has_pandas = done.stdout.split()
    assert int(megabytes) < 20
    assert has_pandas == "False"
