from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import Operator, check_tensor, select, vmap_loop
from fastwm.ops._declared import numbers, wide

ACTIVATIONS = numbers("Activation")


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-4) -> Tensor:
    """RMSNorm over the last axis: `rms_norm_silu` without the activation."""
    return _norm_act(x, weight, None, eps, "none")


def rms_norm_silu(x: Tensor, weight: Tensor, eps: float = 1e-4) -> Tensor:
    """SiLU of an RMSNorm over the last axis, in one pass: what follows every linear layer of DreamerV3.

        y = silu(x / sqrt(mean(x^2) + eps) * weight),   silu(z) = z sigmoid(z)

    Args:
        x: `[..., D]`, D >= 1. float32, float64 or bfloat16 (computed in float32, under autocast too); other
            floating dtypes are served by plain PyTorch.
        weight: `[D]`, float32 (float64 where `x` is; anything else is converted).
        eps: is added to the mean square.

    Returns:
        Like `x`, contiguous, in its dtype. Differentiable in `x` and `weight`: once, or any number of times with
        the `ref` backend. The same gradients bit by bit whatever the number of threads.

    Raises:
        ValueError: `weight` is not `[D]`, lies on another device, or a tensor is not floating-point.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization"; the official DreamerV3 code, nets.Norm
    """
    return _norm_act(x, weight, None, eps, "silu")


def layer_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-3) -> Tensor:
    """SiLU of a LayerNorm over the last axis, in one pass.

        y = silu((x - mean(x)) / sqrt(var(x) + eps) * weight + bias),   var(x) = mean((x - mean(x))^2)

    Args:
        x: `[..., D]`, see `rms_norm_silu`.
        weight, bias: `[D]`, float32 (float64 where `x` is; anything else is converted).
        eps: is added to the variance.

    Returns:
        Like `x`, contiguous, in its dtype. Differentiable in `x`, `weight` and `bias`; see `rms_norm_silu`.

    Raises:
        ValueError: `weight` or `bias` is not `[D]`, lies on another device, or a tensor is not floating-point.

    Source: Ba et al., "Layer Normalization"; Hafner et al., "Mastering Atari with Discrete World Models"
    """
    return _norm_act(x, weight, bias, eps, "silu")


def layer_norm_elu(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-3) -> Tensor:
    """ELU of a LayerNorm over the last axis, in one pass: `layer_norm_silu` with `elu(z) = z if z > 0 else e^z - 1`."""
    return _norm_act(x, weight, bias, eps, "elu")


def activate(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, activation: str) -> Tensor:
    """The activation of x [..., D], behind a LayerNorm where there is one."""
    if scale is None or shift is None:
        y: Tensor = getattr(F, activation)(x)
        return y
    if activation == "relu":
        return F.relu(_norm_act(x, scale, shift, eps, "none"))
    return _norm_act(x, scale, shift, eps, activation)


def _norm_act(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, activation: str) -> Tensor:
    if x.dim() == 0 or x.shape[-1] == 0 or not x.dtype.is_floating_point:
        raise ValueError(f"expected floating-point x [..., D] with D >= 1, got {list(x.shape)} {x.dtype}")
    weight = _affine("weight", weight, x)
    if bias is not None:
        bias = _affine("bias", bias, x)
    library = select(x)
    if library is None:
        return ref.norm_act(x, weight, bias, eps, activation)
    y: Tensor = _forward(library, x, weight, bias, eps, ACTIVATIONS[activation])
    return y


def _affine(name: str, affine: Tensor, x: Tensor) -> Tensor:
    check_tensor(name, affine, x.shape[-1:], x)
    dtype = wide(x.dtype)
    return affine if affine.dtype == dtype else affine.to(dtype)


_forward = Operator("norm_act", vmap_loop)
