from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.rssm_observe import DenseWeights, LinearWeights, _dense


class MLPWeights(NamedTuple):
    """Dense layers and a linear one behind them."""

    layers: tuple[DenseWeights, ...]
    out: LinearWeights


def mlp(x: Tensor, w: MLPWeights, onehot: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Linear -> RMSNorm -> SiLU layers, then a linear one: see `fastwm.ops.mlp`."""
    if onehot is not None:
        x = torch.cat([x, onehot], -1)
    for layer in w.layers:
        x = _dense(x, layer, eps)
    return F.linear(x, *w.out)
