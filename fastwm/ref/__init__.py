"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.cells import (
    block_gru_gates,
    gru_gates,
    layernorm_gru_gates,
    lstm_gates,
    planet_gru_reset,
    planet_gru_update,
)
from fastwm.ref.lambda_return import lambda_return

__all__ = [
    "block_gru_gates",
    "gru_gates",
    "lambda_return",
    "layernorm_gru_gates",
    "lstm_gates",
    "planet_gru_reset",
    "planet_gru_update",
]
