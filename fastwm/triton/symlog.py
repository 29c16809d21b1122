"""symlog and symexp: a block of elements a program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

BLOCK = 1024


@triton.jit
def _log1p(x):  # type: ignore[no-untyped-def]
    """log(u), u = 1 + x rounded, corrected by what the rounding lost; x >= 0."""
    u = 1 + x
    lost = tl.where(x < 1, x - (u - 1), 1 - (u - x))
    return tl.where(u < float("inf"), tl.log(u) + lost / u, u)


@triton.jit
def _expm1(x):  # type: ignore[no-untyped-def]
    """Kahan's: (u - 1) x / log(u) with u = e^x, where the rounding of u cancels; x >= 0."""
    u = tl.exp(x)
    inside = (u != 1) & (u < float("inf"))
    small = tl.where(inside, (u - 1) * (x / tl.log(tl.where(inside, u, 2))), x)
    return tl.where(x < 1, small, u - 1)


@triton.jit
def _each(x, grad, out, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    dtype = out.dtype.element_ty
    acc = tl.float64 if dtype == tl.float64 else tl.float32
    v = tl.load(x + at, mask, 0).to(acc)
    magnitude = tl.abs(v)
    if FUNCTION == "symlog":
        y = tl.where(v < 0, -_log1p(magnitude), _log1p(magnitude))
    elif FUNCTION == "symexp":
        y = tl.where(v < 0, -_expm1(magnitude), _expm1(magnitude))
    elif FUNCTION == "symlog_backward":
        y = tl.load(grad + at, mask, 0).to(acc) / (1 + magnitude)
    else:  # v is symexp's output: e^|x| = 1 + |v|
        y = tl.load(grad + at, mask, 0).to(acc) * (1 + magnitude)
    tl.store(out + at, y.to(dtype), mask)


def _run(function: str, x: Tensor, grad: Tensor | None = None) -> Tensor:
    x = x.contiguous()
    grad = None if grad is None else grad.contiguous()
    out = empty(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _each[(triton.cdiv(x.numel(), BLOCK),)](x, grad, out, x.numel(), FUNCTION=function, BLOCK=BLOCK)
    return out


@operator
def symlog(x: Tensor) -> Tensor:
    return _run("symlog", x)


@operator
def symexp(x: Tensor) -> Tensor:
    return _run("symexp", x)


@operator
def symlog_backward(grad: Tensor, x: Tensor) -> Tensor:
    return _run("symlog_backward", x, grad)


@operator
def symexp_backward(grad: Tensor, y: Tensor) -> Tensor:
    return _run("symexp_backward", y, grad)
