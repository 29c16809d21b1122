"""Arrays on disk that may be damaged, or a stranger's: type, shape and size are checked before memory is taken."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastwm.errors import FastwmError
from fastwm.files import regular

Spec = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name; -1 is any length."""

BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError,
          zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip
AGAIN = "remove it; the same command makes it again"


def read_npz(path: Path, spec: Spec) -> dict[str, np.ndarray]:
    """The arrays of a spec from a file that `np.savez` wrote; their checksums are compared."""
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            return {key: _read(archive, f"{key}.npy", *kind) for key, kind in spec.items()}
    except BROKEN as error:
        raise FastwmError(f"{path} is damaged ({error}): {AGAIN}") from error


def names_in(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except BROKEN as error:
        raise FastwmError(f"{path} is damaged ({error}): {AGAIN}") from error


def open_npy(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array that stays on disk and is read where it is asked for."""
    try:
        array = np.lib.format.open_memmap(regular(path), mode="r")
        _check(path.name, array.dtype, array.shape, dtype, shape)
    except (OSError, ValueError, OverflowError) as error:
        raise FastwmError(f"{path} is damaged ({error}): remove its folder; the same command makes it again") from error
    return array


def _read(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with archive.open(name) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another format")
        given, fortran, kind = np.lib.format.read_array_header_1_0(file)
        _check(name, kind, given, dtype, shape)
        if fortran and len(given) > 1:
            raise ValueError(f"{name} is in Fortran's order")
        return np.frombuffer(bytearray(file.read()), kind).reshape(given)


def _check(name: str, dtype: np.dtype, shape: tuple[int, ...], wanted: str, wanted_shape: tuple[int, ...]) -> None:
    fits = len(shape) == len(wanted_shape) and all(n == w or w == -1 for n, w in zip(shape, wanted_shape))
    if dtype != np.dtype(wanted) or not fits:
        raise ValueError(f"{name} is {dtype} {list(shape)}, expected {wanted} {list(wanted_shape)}")
