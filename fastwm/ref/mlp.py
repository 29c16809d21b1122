import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.gru_rssm import _layer
from fastwm.ref.rssm_observe import _dense
from fastwm.weights import DenseWeights, MLPWeights


def mlp(x: Tensor, w: MLPWeights, onehot: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Linear -> norm -> activation layers, then a linear one: see `fastwm.ops.mlp`."""
    if onehot is not None:
        x = torch.cat([x, onehot], -1)
    for layer in w.layers:
        x = _dense(x, layer, eps) if isinstance(layer, DenseWeights) else _layer(x, layer, w.activation, eps)
    return F.linear(x, *w.out)
