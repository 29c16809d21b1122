"""Breaks an argument of a call: its shape, dtype, layout or value."""

import random
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)
_FLOATS = (0.0, -1.0, 1.0, 1e308, float("inf"), float("-inf"), float("nan"))
_INTS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 2**31, 2**61, 2**62, 2**63 - 1)
_FEW = (-(2**63), -1, 0, 1, 2, 7)  # of what takes time or memory in proportion: steps and counts


def broken(rng: random.Random, x: Any, few: bool = False) -> Any:
    """Something like x in its place."""
    if isinstance(x, Tensor):
        try:
            return _tensor(rng, x)
        except (RuntimeError, TypeError, IndexError):  # of what is broken already
            return None
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        return rng.choice(_FEW if few else _INTS)
    if isinstance(x, float):
        return rng.choice(_FLOATS)
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return _sequence(rng, list(x))
    if isinstance(x, str):
        return "xh"
    if x is None:
        return torch.zeros(rng.choice([0, 1, 3]))
    return x


def _sequence(rng: random.Random, x: list[Any]) -> list[Any]:
    kind = rng.randrange(4)
    if kind == 0 or not x:
        return x[: rng.randrange(len(x) + 1)]
    if kind == 1:
        return [*x, *x]
    i = rng.randrange(len(x))
    return [*x[:i], broken(rng, x[i]), *x[i + 1 :]]


def _tensor(rng: random.Random, x: Tensor) -> Any:
    kind, dim = rng.randrange(12), rng.randrange(max(x.dim(), 1))
    if kind == 0:
        return None
    if kind == 1:
        return x.to(rng.choice(_DTYPES))
    if kind == 2:
        return x.unsqueeze(dim)
    if kind == 3:
        return x.to("meta")
    if kind == 4 and x.dim() > 0:
        return x.to_sparse()
    if kind == 5:
        return torch.zeros((), dtype=x.dtype)
    if x.dim() == 0:
        return x.expand(3)
    size = x.shape[dim]
    if kind == 6:
        return x.narrow(dim, 0, 0)
    if kind == 7 and size > 0:
        return x.narrow(dim, 0, size - 1)
    if kind == 8 and size > 0:
        return torch.cat([x, x.narrow(dim, 0, 1)], dim)
    if kind == 9:
        shape = list(x.shape)
        shape[dim] = 0
        shape[rng.randrange(x.dim())] = rng.choice([0, 2**40, 2**61])
        return x.new_empty(shape) if 0 in shape else x
    if kind == 10:
        return x.select(dim, 0) if size > 0 else x.squeeze(dim)
    if x.is_floating_point():
        value = torch.tensor(rng.choice(_FLOATS), dtype=torch.float64).to(x.dtype)
        return torch.where(torch.rand(x.shape) < 0.3, value, x)
    return x.transpose(0, -1)
