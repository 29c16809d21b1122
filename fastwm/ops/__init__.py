"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.lambda_return import lambda_return
from fastwm.ops.laprop import laprop_step_
from fastwm.ops.norm_act import layer_norm_elu, layer_norm_silu, rms_norm, rms_norm_silu
from fastwm.ops.symlog import symexp, symlog
from fastwm.ops.two_hot import two_hot_loss, two_hot_mean

__all__ = [
    "backend",
    "lambda_return",
    "laprop_step_",
    "layer_norm_elu",
    "layer_norm_silu",
    "rms_norm",
    "rms_norm_silu",
    "symexp",
    "symlog",
    "two_hot_loss",
    "two_hot_mean",
]
