"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.lambda_return import lambda_return
from fastwm.ref.laprop import laprop_step_
from fastwm.ref.norm_act import layer_norm_elu, layer_norm_silu, norm_act, rms_norm, rms_norm_silu
from fastwm.ref.symlog import symexp, symlog
from fastwm.ref.two_hot import two_hot_loss, two_hot_mean

__all__ = [
    "lambda_return",
    "laprop_step_",
    "layer_norm_elu",
    "layer_norm_silu",
    "norm_act",
    "rms_norm",
    "rms_norm_silu",
    "symexp",
    "symlog",
    "two_hot_loss",
    "two_hot_mean",
]
