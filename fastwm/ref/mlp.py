from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.gru_rssm import LayerWeights, _layer
from fastwm.ref.rssm_observe import DenseWeights, LinearWeights, _dense


class MLPWeights(NamedTuple):
    """Dense layers and a linear one behind them.

    The layers are all `DenseWeights`, which have an RMSNorm and SiLU, or all `LayerWeights`, which have the activation
    of this name, and all of them a LayerNorm or none.
    """

    layers: tuple[DenseWeights, ...] | tuple[LayerWeights, ...]
    out: LinearWeights
    activation: str = "silu"
    """Or "elu", "relu"."""


def mlp(x: Tensor, w: MLPWeights, onehot: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Linear -> norm -> activation layers, then a linear one: see `fastwm.ops.mlp`."""
    if onehot is not None:
        x = torch.cat([x, onehot], -1)
    for layer in w.layers:
        x = _dense(x, layer, eps) if isinstance(layer, DenseWeights) else _layer(x, layer, w.activation, eps)
    return F.linear(x, *w.out)
