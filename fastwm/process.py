"""How this process waits for its threads, keeps its memory and collects its garbage. Imports no torch."""

import atexit
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPINS = 15_000  # pauses of a thread that waits, 0.3 to 1 ms, before it sleeps; libgomp's own number is 300,000
CHOSEN_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # a user who sets one of them has chosen

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

_chosen = [f"{name}={os.environ[name]}" for name in CHOSEN_BY if name in os.environ]
_torch_came_first = "torch" in sys.modules


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon when they wait, unless the user has chosen or torch is loaded already.

    By default they spin for up to 20 ms after every parallel region. Beside a busy process they then take the core
    that the thread they wait for needs. OpenMP reads its settings once, when torch is loaded.
    """
    if not _torch_came_first and not _chosen:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def waiting() -> str:
    """One line on how OpenMP's threads wait, for `fastwm doctor`."""
    if _chosen:
        return ", ".join(_chosen)
    if _torch_came_first:
        return (
            f"OpenMP's default, slow beside a busy process: import fastwm before torch, or set GOMP_SPINCOUNT={SPINS}"
        )
    return f"GOMP_SPINCOUNT={SPINS}, set by fastwm; it cannot where torch is imported first"


@functools.cache
def settle() -> None:
    """Prepare this process for hours of training: keep freed memory, and exclude what exists from garbage collection.

    An update frees and asks for some hundred megabytes. By default glibc returns large blocks to the system, which
    clears every page again, and Python walks the objects of all imported modules every few updates: 12 to 34 % of an
    update on a CPU. The runner calls this. In a training loop of your own, call it once, after the agent is built.
    The process then keeps its peak memory, and reference cycles that exist at the call are never freed.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else bindings report all they still hold as leaks
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def ends_in_one_line() -> Iterator[None]:
    """Ctrl-C inside ends the command line with one line and code 130; other programs decide for themselves."""
    try:
        yield
    except KeyboardInterrupt:
        if Path(sys.argv[0]).name != "fastwm" and "fastwm.cli" not in sys.orig_argv:
            raise
        print("fastwm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
