"""What a process that trains for hours asks of its allocator and of Python's garbage collector."""

import atexit
import ctypes
import functools
import gc
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


@functools.cache
def settle() -> None:
    """Keep what an update frees for the next one, and stop looking for garbage among what stays.

    An update frees and asks for some hundred megabytes. glibc would hand large pieces back to the system, which
    clears every page anew; and Python would walk all objects of all imported modules every few updates.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else bindings report all they still hold as leaks
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
