"""Files that are whole or absent, and one line where the disk takes no more."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import FastwmError

TEMPORARY = "tmp-"
SAFE = "what was saved before is safe, and the same command goes on"


@contextmanager
def disk_errors(path: Path, rest: str = SAFE) -> Iterator[None]:
    """Failures to write inside become a FastwmError that names `path`, the reason and what to expect."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FastwmError(f"cannot write {path}: {reason(error)}; {rest}") from error


def reason(error: Exception) -> str:
    """Why a write failed, in words."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):  # safetensors
        number = int(found[1])
    if number in (errno.ENOSPC, errno.EDQUOT) or " requested and " in str(error):  # NumPy's words for a short write
        return "the disk is full"
    return os.strerror(number) if number is not None else str(error).splitlines()[0]


@contextmanager
def replacing(path: Path, rest: str = SAFE) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder of files to; it becomes `path` when the block has succeeded.

    A block that fails, or is interrupted, leaves `path` as it was. Only a kill leaves the temporary, which the next
    writer replaces and `remove_temporaries` removes. A folder must not exist yet.
    """
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        with disk_errors(path, rest):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            for written in temporary.iterdir() if temporary.is_dir() else [temporary]:
                sync(written)
            temporary.replace(path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            remove(path)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
