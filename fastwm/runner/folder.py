"""The folder of a run: made where it is missing, written by one process at a time."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastwm.errors import FastwmError

log = logging.getLogger("fastwm")

LOCK = "lock"
_held: set[int] = set()


def _release_in_child() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


# An environment's process that outlives a killed run must not keep the folder locked.
os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def run_folder(logdir: Path) -> Iterator[None]:
    """Make `logdir` and hold it for this process; what only reads it may go on.

    Folders made here that are empty in the end are removed. Raises FastwmError where another process holds the
    folder, which it names, or where it cannot be made or written.
    """
    made = [folder for folder in (logdir, *logdir.parents) if not folder.exists()]
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        lock = acquire(logdir)
    except OSError as error:
        remove_empty(made)
        raise FastwmError(f"cannot use the folder {logdir}: {error.strerror or error}") from error
    _held.add(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            (logdir / LOCK).unlink()
        _held.discard(lock)
        os.close(lock)
        remove_empty(made)


def acquire(logdir: Path) -> int:
    """The descriptor of a locked file in `logdir`, which says who holds it. A kill releases the lock too."""
    while True:
        lock = os.open(logdir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if os.fstat(lock).st_nlink > 1:  # what is written would appear under its other name
            os.close(lock)
            raise FastwmError(f"{logdir / LOCK} is also a file elsewhere, by a hard link: remove it")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace").partition("\n")[0] or "another process"
            os.close(lock)
            raise FastwmError(f"{logdir} is in use by {holder}: end that run, or give another --logdir") from None
        except OSError as error:  # some network file systems have no locks
            log.warning("cannot lock %s (%s): start no second run there", logdir, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(logdir / LOCK)):
                break
        os.close(lock)  # its holder has just removed it
    os.ftruncate(lock, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    return lock


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, inner ones first; one that holds something stays, with all around it."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
