"""Memory of a process that computes on the CPU.

glibc gives a block of 32 MB or more back to the kernel as soon as it is freed, and each training step asks for the same
blocks again: the kernel hands them out as pages of zeros, 4 KB by 4 KB. Source: mallopt(3), M_MMAP_THRESHOLD.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def hold_freed_memory() -> bool:
    """Let this process, from now on, use freed memory again instead of giving it back; whether that could be arranged.

    Its memory then never shrinks, and what lies between used blocks counts. Elsewhere than with glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # No block is a mapping of its own, and the heap's end is not given back (-1: at no size).
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
