from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, autocast_float32, select


def symlog(x: Tensor) -> Tensor:
    """The symmetric logarithm: compresses large magnitudes of either sign, is the identity near zero.

        y = sign(x) ln(1 + |x|),   dy/dx = 1 / (1 + |x|)

    Args:
        x: any shape. float32, float64 or bfloat16 (computed in float32); other floating dtypes are served by
            plain PyTorch.

    Returns:
        Like `x`, contiguous, in its dtype (float32 under autocast). Differentiable once, or any number of times
        with the `ref` backend. The derivative at 0 is 1, where autograd of the formula as written gives 0.

    Raises:
        ValueError: `x` is not floating-point.

    Source: Hafner et al., "Mastering Diverse Domains through World Models"
    """
    return _apply(_symlog, ref.symlog, x)


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`; see there for arguments, dtypes and errors.

    y = sign(x) (e^|x| - 1),   dy/dx = e^|x|
    """
    return _apply(_symexp, ref.symexp, x)


def _apply(operator: "Operator", plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise ValueError(f"expected a floating-point tensor, got {x.dtype}")
    (x,) = autocast_float32(x)
    library = select(x)
    y: Tensor = plain(x) if library is None else operator(library, x)
    return y


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _vmap(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
    def front(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

    return op(*map(front, args, in_dims)), 0


def _save_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _save_output(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _symlog_derivative(library: str, ctx: Any, grad: Tensor) -> Tensor:
    d_x: Tensor = _symlog_backward(library, grad, *ctx.saved_tensors)
    return d_x


def _symexp_derivative(library: str, ctx: Any, grad: Tensor) -> Tensor:
    d_x: Tensor = _symexp_backward(library, grad, *ctx.saved_tensors)
    return d_x


_symlog_backward = Operator("symlog_backward", fake=_like, vmap=_vmap)
_symexp_backward = Operator("symexp_backward", fake=_like, vmap=_vmap)
_symlog = Operator("symlog", fake=_like, vmap=_vmap, backward=_symlog_derivative, setup_context=_save_input)
_symexp = Operator("symexp", fake=_like, vmap=_vmap, backward=_symexp_derivative, setup_context=_save_output)
