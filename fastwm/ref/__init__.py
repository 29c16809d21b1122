"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.lambda_return import lambda_return
from fastwm.ref.mdn import mdn_nll, mdn_sample
from fastwm.ref.philox import philox_bits, philox_normal, philox_uniform

__all__ = ["lambda_return", "mdn_nll", "mdn_sample", "philox_bits", "philox_normal", "philox_uniform"]
