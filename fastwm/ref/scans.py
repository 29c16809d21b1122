import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.cells import gru_gates, layernorm_gru_gates, lstm_gates, planet_gru_reset, planet_gru_update


def gru_scan(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None, is_first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    outputs = []
    for t in range(len(x)):
        h = _reset(h, is_first, t)
        h = gru_gates(_linear(x[t], weight_ih, bias_ih), _linear(h, weight_hh, bias_hh), h)
        outputs.append(h)
    return torch.stack(outputs), h


def lstm_scan(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None, is_first: Tensor | None = None, forget_bias: float = 0.0, order: str = "ifgo",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    outputs = []
    for t in range(len(x)):
        h, c = _reset(h, is_first, t), _reset(c, is_first, t)
        input, hidden = _linear(x[t], weight_ih, bias_ih), _linear(h, weight_hh, bias_hh)
        h, c = lstm_gates(input, hidden, c, forget_bias, order)
        outputs.append(h)
    return torch.stack(outputs), h, c


def layernorm_gru_scan(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    is_first: Tensor | None = None, order: str = "xh", eps: float = 1e-3, update_bias: float = -1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    outputs = []
    for t in range(len(x)):
        h = _reset(h, is_first, t)
        gates = _linear(_cat(x[t], h) if order == "xh" else _cat(h, x[t]), weight, bias)
        h = layernorm_gru_gates(gates, norm_weight, norm_bias, h, eps, update_bias)
        outputs.append(h)
    return torch.stack(outputs), h


def planet_gru_scan(
    x: Tensor, h: Tensor, weight_ru: Tensor, bias_ru: Tensor, weight_c: Tensor, bias_c: Tensor,
    is_first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    outputs = []
    for t in range(len(x)):
        h = _reset(h, is_first, t)
        reset_h, update = planet_gru_reset(_linear(_cat(x[t], h), weight_ru, bias_ru), h)
        h = planet_gru_update(update, _linear(_cat(x[t], reset_h), weight_c, bias_c), h)
        outputs.append(h)
    return torch.stack(outputs), h


def _reset(carry: Tensor, is_first: Tensor | None, t: int) -> Tensor:
    return carry if is_first is None else carry.masked_fill(is_first[t, :, None], 0)


def _cat(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.cat([a.to(dtype), b.to(dtype)], -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)
