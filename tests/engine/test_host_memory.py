"""Freed memory that is used again is not faulted in again."""

import os
import platform
import subprocess
import sys

import pytest

from essa_dist.engine.host_memory import KEPT_KERNELS, hold_freed_memory

COUNT = """
import resource, torch
from essa_dist.engine.host_memory import hold_freed_memory
if {hold}:
    assert hold_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(24):  # the first blocks leave gaps that are a little too small for the next
    before = faults()
    torch.ones(2**24)  # 64 MB: more than glibc keeps
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_large_block_is_faulted_in_once() -> None:
    held, freed = (
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT.format(hold=hold)], capture_output=True, check=True
            ).stdout
        )
        for hold in (True, False)
    )
    assert held < 100
    assert freed >= 32  # in pages of 2 MB, else of 4 KB


@pytest.mark.parametrize(("own", "kept"), [(None, "128"), ("7", "7")])
def test_what_onednn_keeps_is_bounded_unless_the_user_says_how(
    own: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = KEPT_KERNELS[0]
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # leave this process's memory alone
    assert not hold_freed_memory()
    assert os.environ[name] == kept
