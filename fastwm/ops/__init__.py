"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.lambda_return import lambda_return

__all__ = ["backend", "lambda_return"]
