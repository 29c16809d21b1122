from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.weights import BlockGRUWeights, DenseWeights


def block_gru_scan(
    inputs: Sequence[Tensor], h: Tensor, w: BlockGRUWeights, is_first: Tensor,
    update_bias: float = -1.0, eps: float = 1e-4,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The core over a sequence: see `fastwm.ops.block_gru_scan`."""
    outputs = []
    for t in range(len(is_first)):
        h = h.masked_fill(is_first[t, :, None], 0)
        h = block_gru_step([x[t] for x in inputs], h, w, update_bias, eps)
        outputs.append(h)
    return torch.stack(outputs), h


def block_gru_step(
    inputs: Sequence[Tensor], h: Tensor, w: BlockGRUWeights, update_bias: float = -1.0, eps: float = 1e-4
) -> Tensor:
    """`h' = u c + (1 - u) h`: inputs [B, X], h [B, D] -> [B, D]."""
    blocks = len(w.gates.weight)
    embeds = [_dense(h, w.embed_carry, eps), *(_dense(x, layer, eps) for x, layer in zip(inputs, w.embed_inputs))]
    x = torch.cat(embeds, -1)[:, None].expand(-1, blocks, -1)  # [B, G, (1 + I) U]
    x = torch.cat([h.unflatten(-1, (blocks, -1)).to(x.dtype), x], -1)  # every block: its own carry, all embeddings
    for layer in w.hidden:
        x = _norm_silu(_blocks(x, layer.weight) + layer.bias, layer.norm, eps).unflatten(-1, (blocks, -1))
    gates = _blocks(x, w.gates.weight) + w.gates.bias
    gates = gates.to(h.dtype).unflatten(-1, (blocks, 3, -1))
    reset, cand, update = (gate.flatten(1) for gate in gates.unbind(-2))
    update = torch.sigmoid(update + update_bias)
    return update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * h


def _dense(x: Tensor, layer: DenseWeights, eps: float) -> Tensor:
    return _norm_silu(F.linear(x, layer.weight, layer.bias), layer.norm, eps)


def _norm_silu(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return F.silu(F.rms_norm(x.to(scale.dtype), scale.shape, scale, eps).to(x.dtype))


def _blocks(x: Tensor, weight: Tensor) -> Tensor:
    """[B, G, I] times [G, I, O] -> [B, G*O]."""
    return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1).flatten(1)
