"""A sequence's products that wait for no step: one linear layer over many rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ops._backend import KERNEL_DTYPES, Operator, no_vmap

_ROWS = 256  # from which packing the weight pays
_NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere PyTorch's bfloat16 products are slower than float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, bf16: bool = False) -> Tensor:
    """`F.linear` over the rows of a whole sequence: y = x W^T + b, in float32 or float64.

    A kernel of our own serves where there are rows enough to make packing the weight pay: on AMD, PyTorch's products
    use AVX2 at most. Otherwise F.linear serves, on a GPU under the autocast that is on.

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


def _columns(weight: Tensor) -> int:
    return weight.shape[0] * (1 if weight.dim() == 2 else weight.shape[2])


_forward = Operator("linear", no_vmap("linear"), columns=_columns)
