"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.lambda_return import lambda_return
from fastwm.ops.mdn import mdn_nll, mdn_sample
from fastwm.ops.philox import philox_bits, philox_normal, philox_uniform

__all__ = ["backend", "lambda_return", "mdn_nll", "mdn_sample", "philox_bits", "philox_normal", "philox_uniform"]
