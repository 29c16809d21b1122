"""One step of each recurrent cell: matrix products by torch, everything between them by the operators of `cells`.

Every step takes `is_first`, boolean, of the carry's shape without its last dimension: where it is set the carry is
zero, and no gradient passes. Under autocast the products run in its dtype, the carry keeps its own.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ops._backend import autocast_is_on
from fastwm.ops.cells import (
    GateOrder,
    block_gru_gates,
    gru_gates,
    layernorm_gru_gates,
    lstm_gates,
    planet_gru_reset,
    planet_gru_update,
)

InputOrder = Literal["xh", "hx"]


def reset_carry(carry: Tensor, is_first: Tensor | None) -> Tensor:
    """`carry` `[..., D]`, zero where `is_first` `[...]`: what an episode's first step starts from.

    Raises:
        ValueError: `is_first` is not boolean, or its shape or device is not that of the carry's rows.
    """
    if is_first is None:
        return carry
    if is_first.dtype != torch.bool or is_first.shape != carry.shape[:-1] or is_first.device != carry.device:
        raise ValueError(
            f"expected is_first {list(carry.shape[:-1])} torch.bool {carry.device}, "
            f"got {list(is_first.shape)} {is_first.dtype} {is_first.device}"
        )
    return carry.masked_fill(is_first.unsqueeze(-1), 0)


def gru_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    is_first: Tensor | None = None,
) -> Tensor:
    """One step of `torch.nn.GRUCell`, which is also Dreamer V1's cell. See `gru_gates`.

    Args:
        x: `[..., X]`; h: `[..., D]`, the carry.
        weight_ih, weight_hh, bias_ih, bias_hh: `[3D, X]`, `[3D, D]`, `[3D]`, `[3D]`, as in torch.nn.GRUCell.
        is_first: `[...]` bool.

    Returns:
        h' `[..., D]`, in `h`'s dtype.
    """
    h = reset_carry(h, is_first)
    return gru_gates(_linear(x, weight_ih, bias_ih), _linear(h, weight_hh, bias_hh), h)


def planet_gru_step(
    x: Tensor,
    h: Tensor,
    weight_ru: Tensor,
    bias_ru: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    is_first: Tensor | None = None,
) -> Tensor:
    """One step of PlaNet's cell, TensorFlow's GRUBlockCell: the reset gate acts before the recurrent product.

        r, u = sigmoid([x, h] W_ru + b_ru),   c = tanh([x, r h] W_c + b_c),   h' = u h + (1 - u) c

    Args:
        x: `[..., X]`; h: `[..., D]`, the carry.
        weight_ru, bias_ru: `[2D, X + D]`, `[2D]`, rows in the order r, u. PlaNet starts `bias_ru` at 1.
        weight_c, bias_c: `[D, X + D]`, `[D]`. Both products take x first, h second.
        is_first: `[...]` bool.

    Returns:
        h' `[..., D]`, in `h`'s dtype.
    """
    h = reset_carry(h, is_first)
    reset_h, update = planet_gru_reset(_linear(torch.cat([x, h], -1), weight_ru, bias_ru), h)
    return planet_gru_update(update, _linear(torch.cat([x, reset_h], -1), weight_c, bias_c), h)


def layernorm_gru_step(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    is_first: Tensor | None = None,
    order: InputOrder = "xh",
    eps: float = 1e-3,
    update_bias: float = -1.0,
) -> Tensor:
    """One step of the cell of DreamerV2 and of DreamerV3's first version. See `layernorm_gru_gates`.

    Args:
        x: `[..., X]`; h: `[..., D]`, the carry.
        weight, bias: `[3D, X + D]`, `[3D]`, rows in the order reset, cand, update. V3 has no bias.
        norm_weight, norm_bias: `[3D]`, of the LayerNorm over all three.
        is_first: `[...]` bool.
        order: of the product's inputs: "xh" in DreamerV2, "hx" in DreamerV3.
        eps: of the norm; update_bias: a constant of the update gate.

    Returns:
        h' `[..., D]`, in `h`'s dtype.
    """
    h = reset_carry(h, is_first)
    if order not in ("xh", "hx"):
        raise ValueError(f"order must be 'xh' or 'hx', not {order!r}")
    inputs = torch.cat([x, h] if order == "xh" else [h, x], -1)
    return layernorm_gru_gates(_linear(inputs, weight, bias), norm_weight, norm_bias, h, eps, update_bias)


def block_gru_step(
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    is_first: Tensor | None = None,
    update_bias: float = -1.0,
) -> Tensor:
    """The last layer of DreamerV3's recurrent core: a block-diagonal product, then `block_gru_gates`.

    Args:
        x: `[..., I]`, the hidden layer, G blocks side by side. It depends on h: where `is_first` is used, compute
            it from `reset_carry(h, is_first)`.
        h: `[..., D]`, the carry.
        weight, bias: `[G, I/G, 3D/G]`, `[3D]`: within every block reset, cand, update.
        is_first: `[...]` bool.
        update_bias: a constant of the update gate.

    Returns:
        h' `[..., D]`, in `h`'s dtype.
    """
    h = reset_carry(h, is_first)
    return block_gru_gates(_block_linear(x, weight, bias), h, len(weight), update_bias)


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    is_first: Tensor | None = None,
    forget_bias: float = 0.0,
    order: GateOrder = "ifgo",
) -> tuple[Tensor, Tensor]:
    """One step of `torch.nn.LSTMCell`, or of World Models' cell with `forget_bias=1`. See `lstm_gates`.

    Args:
        x: `[..., X]`; h, c: `[..., D]`, the two carries, which `is_first` resets both.
        weight_ih, weight_hh, bias_ih, bias_hh: `[4D, X]`, `[4D, D]`, `[4D]`, `[4D]`, as in torch.nn.LSTMCell.
        is_first: `[...]` bool.
        forget_bias: a constant of the forget gate; order: of the rows of weights and biases.

    Returns:
        h', c', both `[..., D]`, in `c`'s dtype.
    """
    h, c = reset_carry(h, is_first), reset_carry(c, is_first)
    return lstm_gates(_linear(x, weight_ih, bias_ih), _linear(h, weight_hh, bias_hh), c, forget_bias, order)


def in_dtype_of(weight: Tensor, x: Tensor) -> Tensor:
    """A float32 carry beside 16-bit weights; autocast does this itself."""
    return x if x.dtype == weight.dtype or autocast_is_on(x) else x.to(weight.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(in_dtype_of(weight, x), weight, bias)


def _block_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    blocks, block_in, block_out = weight.shape
    batch = x.shape[:-1]
    x = in_dtype_of(weight, x).reshape(-1, blocks, block_in).transpose(0, 1)  # [G, N, I/G]
    y = torch.baddbmm(bias.view(blocks, 1, block_out), x, weight)  # [G, N, 3D/G]
    return y.transpose(0, 1).reshape(*batch, blocks * block_out)
