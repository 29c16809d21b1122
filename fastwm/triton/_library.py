import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastwm.ops._declared import OPS

_library = torch.library.Library("fastwm_triton", "DEF")
_KEYS = ["CUDA", "CPU"] if os.environ.get("TRITON_INTERPRET") == "1" else ["CUDA"]


def operator(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Registers `fn` as `fastwm_triton::<name>`, with the declared schema."""
    _library.define(OPS[fn.__name__].schema)
    for key in _KEYS:
        _library.impl(fn.__name__, fn, key)
    return fn


def empty(like: Tensor) -> Tensor:
    """Uninitialised and contiguous, whatever the strides of `like`."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)
