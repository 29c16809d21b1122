import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("fastwm_triton", "DEF")
_KEYS = ["CUDA", "CPU"] if os.environ.get("TRITON_INTERPRET") == "1" else ["CUDA"]


def operator(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Registers `fn` as `fastwm_triton::<name>`; its annotations are the schema, as in csrc/schema.cpp."""
    schema = torch.library.infer_schema(fn, mutates_args=()).replace("SymInt", "int")
    _library.define(fn.__name__ + schema)
    for key in _KEYS:
        _library.impl(fn.__name__, fn, key)
    return fn


def empty(like: Tensor) -> Tensor:
    """Uninitialised and contiguous, whatever the strides of `like`."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)
