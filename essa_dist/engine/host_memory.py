"""Memory of a process that computes on the CPU.

glibc gives a block of 32 MB or more back to the kernel as soon as it is freed, and each training step asks for the same
blocks again: the kernel hands them out as pages of zeros, 4 KB by 4 KB. Source: mallopt(3), M_MMAP_THRESHOLD.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEPT_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"
"""oneDNN keeps a kernel with its working memory for each shape of a product, 1,024 of them if nobody says otherwise, and the
number of masked patches is another one in each step: in 18 steps of ViT-S 0.3 GiB more than with 24. Some 50 of a step recur."""


def hold_freed_memory() -> bool:
    """Let this process, from now on, use freed memory again instead of giving it back; whether that could be arranged.

    Its memory then never shrinks, and what lies between used blocks counts. Elsewhere than with glibc that can't be had. What
    oneDNN keeps is bounded everywhere, unless the user's environment says how.
    """
    os.environ.setdefault(*KEPT_KERNELS)  # read when oneDNN is first used in this process
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # No block is a mapping of its own, and the heap's end is not given back (-1: at no size).
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
