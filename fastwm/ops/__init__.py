"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.cell_steps import (
    block_gru_step,
    gru_step,
    layernorm_gru_step,
    lstm_step,
    planet_gru_step,
    reset_carry,
)
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
    "block_gru_step",
    "gru_gates",
    "gru_step",
    "lambda_return",
    "layernorm_gru_gates",
    "layernorm_gru_step",
    "lstm_gates",
    "lstm_step",
    "planet_gru_reset",
    "planet_gru_step",
    "planet_gru_update",
    "reset_carry",
]
