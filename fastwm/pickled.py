"""Pickles of NumPy arrays, read without NumPy's or anybody's code: a stranger's file can name nothing else."""

import io
import math
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.errors import FastwmError
from fastwm.files import regular


class _Dtype:
    """A dtype of numbers: its code, such as `f4`, and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or len(self.code) > 4 or self.order not in ("<", ">", "|", "="):
            raise ValueError("a dtype that is no number's")
        order = "" if self.order in ("|", "=") else self.order
        dtype = np.dtype(f"{order}{self.code}")
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {dtype}")
        return dtype


class _Array:
    """An array under construction: `__setstate__` has its content."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(shape, dtype, "F" if fortran else "C", data)


def _array(shape: Any, dtype: Any, order: Any, data: Any) -> np.ndarray:
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise ValueError("an array without shape or bytes")
    kind = dtype.dtype()
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array {list(shape)} of {kind} in {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order=order).astype(kind.newbyteorder("="))


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.value = _array(shape, dtype, order, data)
    return made


def _scalar(dtype: Any, data: Any) -> _Array:
    return _frombuffer(data, dtype, (), "C")


STANDINS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
"""Functions that check every argument, in place of those that an array's pickle calls."""
for _core in ("numpy.core", "numpy._core"):
    STANDINS |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda *_: _Array(),
        (f"{_core}.multiarray", "scalar"): _scalar,
        (f"{_core}.numeric", "_frombuffer"): _frombuffer,
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDINS:
            raise ValueError(f"it names {module}.{name}, which is no array")
        return STANDINS[module, name]


def read_arrays(path: Path) -> Any:
    """The content of a pickle (protocols 3 to 5) of NumPy arrays, numbers, strings, dictionaries, lists and tuples.

    Nothing that the file names is imported or called.

    Raises:
        FastwmError: for any other content, named in one line.
    """
    data = regular(path).read_bytes()
    try:
        _check_memo(pickletools.genops(data))
        return _finished(_Unpickler(io.BytesIO(data)).load(), {})
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError,
        RecursionError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise FastwmError(f"{path} is no pickle of arrays: {error}") from error


def _check_memo(ops: Iterable[tuple[Any, Any, int | None]]) -> None:
    """No place in the memo beyond the number of opcodes: the unpickler takes memory for all below it."""
    for count, (opcode, argument, _) in enumerate(ops):
        if "PUT" in opcode.name and int(argument) > count:
            raise ValueError("its memo is too large")


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """The tree with every array in its place; what is named twice is walked once."""
    if isinstance(value, _Array):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise ValueError(f"it holds a {type(value).__name__}")
    if id(value) not in seen:
        seen[id(value)] = None  # until it is finished
        if isinstance(value, dict):
            seen[id(value)] = {key: _finished(each, seen) for key, each in value.items()}
        else:
            seen[id(value)] = type(value)(_finished(each, seen) for each in value)
    elif seen[id(value)] is None:
        raise ValueError("it contains itself")
    return seen[id(value)]
