"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.cells import (
    block_gru_gates,
    gru_gates,
    layernorm_gru_gates,
    lstm_gates,
    planet_gru_reset,
    planet_gru_update,
)
from fastwm.ops.lambda_return import lambda_return

__all__ = [
    "backend",
    "block_gru_gates",
    "gru_gates",
    "lambda_return",
    "layernorm_gru_gates",
    "lstm_gates",
    "planet_gru_reset",
    "planet_gru_update",
]
