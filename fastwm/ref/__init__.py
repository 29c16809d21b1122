"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.lambda_return import lambda_return
from fastwm.ref.rssm_imagine import rssm_imagine
from fastwm.ref.rssm_observe import rssm_observe

__all__ = ["lambda_return", "rssm_imagine", "rssm_observe"]
