from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseWeights(NamedTuple):
    """Linear -> RMSNorm -> SiLU: `weight` [out, in], or [G, in/G, out/G] in blocks, `bias` [out], `norm` [out]."""

    weight: Tensor
    bias: Tensor
    norm: Tensor


class LinearWeights(NamedTuple):
    """`weight` [out, in], or [G, in/G, out/G] in blocks, `bias` [out]."""

    weight: Tensor
    bias: Tensor


class BlockGRUWeights(NamedTuple):
    """DreamerV3's recurrent core. D carry, U units of every embedding, X inputs, G blocks."""

    embed_carry: DenseWeights  # [U, D]
    embed_inputs: tuple[DenseWeights, ...]  # [U, X], one for each of I inputs
    hidden: tuple[DenseWeights, ...]  # [G, D/G + (1 + I) U, D/G], and [G, D/G, D/G] from the second layer on
    gates: LinearWeights  # [G, D/G, 3D/G], each block's outputs being reset, cand and update


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
