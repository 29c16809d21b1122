import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {"none": lambda z: z, "silu": F.silu, "elu": F.elu}


def norm_act(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, activation: str) -> Tensor:
    """The activation of a norm over the last axis: RMSNorm, or with a bias LayerNorm. See `fastwm.ops.norm_act`."""
    xhat = x if x.dtype == torch.float64 else x.float()
    if bias is not None:
        xhat = xhat - xhat.mean(-1, keepdim=True)
    z = xhat * torch.rsqrt(xhat.square().mean(-1, keepdim=True) + eps) * weight
    return ACTIVATIONS[activation](z if bias is None else z + bias).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-4) -> Tensor:
    return norm_act(x, weight, None, eps, "none")


def rms_norm_silu(x: Tensor, weight: Tensor, eps: float = 1e-4) -> Tensor:
    return norm_act(x, weight, None, eps, "silu")


def layer_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-3) -> Tensor:
    return norm_act(x, weight, bias, eps, "silu")


def layer_norm_elu(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-3) -> Tensor:
    return norm_act(x, weight, bias, eps, "elu")
