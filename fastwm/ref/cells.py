import torch
from torch import Tensor
from torch.nn import functional as F


def gru_gates(input: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
    i_r, i_z, i_n = input.to(h.dtype).chunk(3, -1)
    h_r, h_z, h_n = hidden.to(h.dtype).chunk(3, -1)
    r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    n = torch.tanh(i_n + r * h_n)
    return (1 - z) * n + z * h


def block_gru_gates(gates: Tensor, h: Tensor, blocks: int, update_bias: float = -1.0) -> Tensor:
    by_block = gates.to(h.dtype).unflatten(-1, (blocks, 3, h.shape[-1] // blocks))  # [..., G, 3, D/G]
    reset, cand, update = (gate.flatten(-2) for gate in by_block.unbind(-2))  # each [..., D]
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    update = torch.sigmoid(update + update_bias)
    return update * cand + (1 - update) * h


def layernorm_gru_gates(
    gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor, eps: float = 1e-3, update_bias: float = -1.0
) -> Tensor:
    weight, bias = weight.to(h.dtype), bias.to(h.dtype)
    gates = F.layer_norm(gates.to(h.dtype), weight.shape, weight, bias, eps)  # over all three gates at once
    return block_gru_gates(gates, h, 1, update_bias)


def planet_gru_reset(gates: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    reset, update = torch.sigmoid(gates.to(h.dtype)).chunk(2, -1)
    return reset * h, update


def planet_gru_update(update: Tensor, cand: Tensor, h: Tensor) -> Tensor:
    return update * h + (1 - update) * torch.tanh(cand.to(h.dtype))


def lstm_gates(
    input: Tensor, hidden: Tensor, c: Tensor, forget_bias: float = 0.0, order: str = "ifgo"
) -> tuple[Tensor, Tensor]:
    gates = (input.to(c.dtype) + hidden.to(c.dtype)).chunk(4, -1)
    i, f, g, o = gates if order == "ifgo" else (gates[0], gates[2], gates[1], gates[3])
    c = torch.sigmoid(f + forget_bias) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
