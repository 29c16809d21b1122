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

__all__ = [
    "CategoricalSample",
    "backend",
    "balanced_categorical_kl",
    "categorical_entropy",
    "categorical_kl",
    "lambda_return",
    "straight_through_categorical",
]
