"""What tensors leave behind stays with the process that trains, instead of going back to the system at every step."""
import ctypes
import os

GLIBC_SETTINGS = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES')
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # the numbers of glibc's malloc.h
_NEVER = 2 ** 31 - 1  # bytes, the most that mallopt takes


def keep_freed_memory() -> bool:
    """Tell glibc to keep memory for the rest of the process, where it is the allocator and has no other orders.

    By default it gives the memory of large tensors back, and the system clears it again, page by page, for the next
    ones. The orders are environment variables that glibc itself reads; any of `MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_` and `GLIBC_TUNABLES` counts, be it empty.

    Returns:
        Whether it was told.
    """
    if os.name != 'posix' or any(name in os.environ for name in GLIBC_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'mallopt'):
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, _NEVER) and library.mallopt(_TRIM_THRESHOLD, _NEVER))
