"""A sequence's products that wait for no step: one linear layer over many rows."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ops._backend import KERNEL_DTYPES, Operator, no_vmap

_ROWS = 256  # from which packing the weight pays
_NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere PyTorch's bfloat16 products are slower than float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, bf16: bool = False) -> Tensor:
    """`F.linear` over the rows of a whole sequence: y = x W^T + b, in float32 or float64.

    On AMD, PyTorch's products know AVX2 alone. Where the operator has a kernel, and rows enough for packing the weight
    to pay, it serves; else F.linear does, on a GPU under the autocast that is on.

    Args:
        x: `[..., K]`.
        weight: `[N, K]`, or `[G, K, N / G]` by blocks of columns: y_g = x W_g.
        bias: `[N]`.
        bf16: multiply in bfloat16, with float32 sums; x and y are float32.

    Returns:
        `[..., N]`, differentiable once.
    """
    library = _forward.library(x) if x.dtype == weight.dtype and x.dtype in KERNEL_DTYPES else None
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    few = not torch.compiler.is_exporting() and rows < _ROWS  # an exported program takes any number of rows
    if library is None or few or torch._C._are_functorch_transforms_active():
        weight = weight if weight.dim() == 2 else weight.movedim(0, 1).flatten(1).t()
        if x.device.type != "cpu":
            return F.linear(x, weight, bias).to(x.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and _NATIVE_BF16):
            return F.linear(x, weight, bias).to(x.dtype)
    y: Tensor = _forward(library, x.reshape(rows, x.shape[-1]), weight, bias, bf16)
    return y.view(*x.shape[:-1], y.shape[-1])


def _outputs(weight: Tensor) -> int:
    return weight.shape[0] * (1 if weight.dim() == 2 else weight.shape[2])


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, bf16: bool) -> Tensor:
    return x.new_empty(x.shape[0], _outputs(weight))


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inputs: bool, weights: bool, bf16: bool
) -> tuple[Tensor, ...]:
    new = x.new_empty
    d_weight = new(weight.shape) if weights else new(0)
    return new(x.shape[0] if inputs else 0, x.shape[1]), d_weight, new(_outputs(weight) if weights else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.bf16 = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _derivative(library: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    inputs, weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
    d_x, d_weight, d_bias = _backward(library, grad, x, weight, inputs, weights, ctx.bf16)
    return d_x if inputs else None, d_weight if weights else None, d_bias if weights and ctx.biased else None, None


_backward = Operator("linear_backward", fake=_fake_backward, vmap=no_vmap("linear"))
_forward = Operator("linear", fake=_fake, vmap=no_vmap("linear"), backward=_derivative, setup_context=_setup_context)
