"""How the C library keeps the memory that PyTorch frees on a CPU."""

import ctypes
import os

LARGE = 2**20  # bytes; smaller blocks are reused so often that mapping them would cost time
KEPT = 64 * 2**20  # free bytes at the heap's end that stay
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


def return_large_blocks() -> bool:
    """Give each freed block of LARGE bytes or more back to the system, and say whether that is so.

    glibc raises that limit to 32 MiB as blocks are freed (mallopt(3), M_MMAP_THRESHOLD). Then
    activations of a large UNet lie in the heap between small blocks that live longer, and what is
    freed among them is not used again. Other C libraries, and limits that are set in the
    environment, are left as they are. What was freed before goes back as well.
    """
    given = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
    if os.name != "posix" or given & os.environ.keys():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    set_limit = library.mallopt
    done = set_limit(_MMAP_THRESHOLD, LARGE) and set_limit(_TRIM_THRESHOLD, KEPT)
    library.malloc_trim(0)
    return bool(done)
