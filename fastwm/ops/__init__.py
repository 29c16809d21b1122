"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.categorical import (
    CategoricalSample,
    balanced_categorical_kl,
    categorical_entropy,
    categorical_kl,
    straight_through_categorical,
)
from fastwm.ops.lambda_return import lambda_return
from fastwm.ops.mdn import mdn_nll, mdn_sample
from fastwm.ops.norm_act import layer_norm_elu, layer_norm_silu, rms_norm, rms_norm_silu
from fastwm.ops.philox import philox_bits, philox_normal, philox_uniform

__all__ = [
    "CategoricalSample",
    "backend",
    "balanced_categorical_kl",
    "categorical_entropy",
    "categorical_kl",
    "lambda_return",
    "layer_norm_elu",
    "layer_norm_silu",
    "mdn_nll",
    "mdn_sample",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "rms_norm",
    "rms_norm_silu",
    "straight_through_categorical",
]
