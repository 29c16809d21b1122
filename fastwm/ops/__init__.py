"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.lambda_return import lambda_return
from fastwm.ops.rssm_imagine import ActionHead, MLPWeights, rssm_imagine
from fastwm.ops.rssm_observe import DenseWeights, LinearWeights, RSSMWeights, rssm_observe

__all__ = [
    "ActionHead",
    "DenseWeights",
    "LinearWeights",
    "MLPWeights",
    "RSSMWeights",
    "backend",
    "lambda_return",
    "rssm_imagine",
    "rssm_observe",
]
