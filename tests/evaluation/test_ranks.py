"""Promises about several processes: each gets what one process would have got, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from essa_dist.evaluation.ranks import chunks, everywhere, gather_rows, own_chunks
from tests.distributed.launching import launch
from tests.evaluation.probes_of import found


def test_one_process_has_all_chunks_and_gathers_nothing() -> None:
    rows = torch.arange(10)
    assert own_chunks(10, 4) == chunks(10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert gather_rows(rows, 10, 4) is rows
    assert everywhere(True)
    assert not everywhere(False)


@pytest.mark.parametrize("ranks", [2])
def test_features_neighbours_and_retrieval_are_those_of_one_process_on_every_rank(
    tmp_path: Path, ranks: int
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have, so that sums are made in the same order
    try:
        expected = found()
    finally:
        torch.set_num_threads(threads)
    ends = launch(ranks, ["tests/evaluation/probes_of.py", str(tmp_path)], env={"PYTHONPATH": "."})
    assert [end.exit_code for end in ends] == [0] * ranks, ends[0].stderr
    for rank in range(ranks):
        given = load_file(tmp_path / f"{rank}.safetensors")
        assert given.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(given[name].nan_to_num(-1), tensor.nan_to_num(-1)), name
