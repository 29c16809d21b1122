"""The gates of recurrent cells: all that is not a matrix product, in one pass. `cell_steps` adds the products."""

from typing import Literal

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, check_alike, select, vmap_loop, vmap_rows

GateOrder = Literal["ifgo", "ijfo"]

_HALF = (torch.bfloat16, torch.float16)


def gru_gates(input: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
    """The gates of `torch.nn.GRUCell` and Dreamer V1: the reset gate acts after the recurrent product.

        r, z = sigmoid(input_rz + hidden_rz),   n = tanh(input_n + r * hidden_n),   h' = (1 - z) n + z h

    Args:
        input: `[..., 3D]`, the input's product and bias, in the order r, z, n.
        hidden: like `input`: the product of `h` and its bias.
        h: `[..., D]`, the carry. `input` and `hidden` have its dtype (float32, float64, bfloat16; others are
            served by plain PyTorch) or are bfloat16 or float16 beside a float32 carry. Computed in float32 at least.

    Returns:
        h' `[..., D]`, contiguous, in `h`'s dtype. Differentiable in every argument.

    Raises:
        ValueError: a shape, dtype or device does not fit `h`'s.

    Source: torch.nn.GRUCell; Keras GRUCell with reset_after=True, whose columns are z, r, n
    """
    _check("h", h, 3, input=input, hidden=hidden)
    library = select(input)
    if library is None:
        return ref.gru_gates(input, hidden, h)
    return _gru(library, input, hidden, h)


def block_gru_gates(gates: Tensor, h: Tensor, blocks: int, update_bias: float = -1.0) -> Tensor:
    """The gates of DreamerV3's block GRU; with one block, those of DreamerV2's cell behind its norm.

        r = sigmoid(reset),   c = tanh(r * cand),   u = sigmoid(update + update_bias),   h' = u c + (1 - u) h

    Args:
        gates: `[..., 3D]` as G blocks side by side, each of which holds reset, cand, update of D/G entries.
        h: `[..., D]`, the carry, with dtypes as in `gru_gates`: gates may be bfloat16 beside a float32 carry.
        blocks: G, a divisor of D.
        update_bias: a constant of the update gate; -1 starts near keeping the state.

    Returns:
        h' `[..., D]`, contiguous, in `h`'s dtype. Differentiable in `gates` and `h`.

    Raises:
        ValueError: a shape, dtype or device does not fit `h`'s; `blocks` does not divide D.

    Source: Hafner et al., "Mastering Diverse Domains through World Models", code of 2024 and later
    """
    _check("h", h, 3, gates=gates)
    if blocks < 1 or h.shape[-1] % blocks:
        raise ValueError(f"a carry of width {h.shape[-1]} does not divide into {blocks} blocks")
    library = select(gates)
    if library is None:
        return ref.block_gru_gates(gates, h, blocks, update_bias)
    return _block_gru(library, gates, h, blocks, float(update_bias))


def layernorm_gru_gates(
    gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor, eps: float = 1e-3, update_bias: float = -1.0
) -> Tensor:
    """The gates of DreamerV2 and of DreamerV3's first version: one LayerNorm over all three, then
    `block_gru_gates` of one block.

    Args:
        gates: `[..., 3D]`, before the norm, in the order reset, cand, update.
        weight: `[3D]`, the norm's scale; `bias` `[3D]` its shift. Cast to `h`'s dtype.
        h: `[..., D]`, the carry, with dtypes as in `gru_gates`.
        eps: added to the variance.
        update_bias: a constant of the update gate.

    Returns:
        h' `[..., D]`, contiguous, in `h`'s dtype. Differentiable in `gates`, `weight`, `bias` and `h`.

    Raises:
        ValueError: a shape, dtype or device does not fit `h`'s; D = 0.

    Source: Hafner et al., "Mastering Atari with Discrete World Models", GRUCell of the public code
    """
    _check("h", h, 3, gates=gates)
    wide = gates.shape[-1]
    for name, x in (("weight", weight), ("bias", bias)):
        if x.shape != (wide,) or x.device != h.device:
            raise ValueError(f"expected {name} [{wide}] on {h.device}, got {list(x.shape)} on {x.device}")
    if wide == 0:
        raise ValueError("a carry of width 0 has no norm")
    library = select(gates)
    if library is None:
        return ref.layernorm_gru_gates(gates, weight, bias, h, eps, update_bias)
    if weight.dtype != h.dtype or bias.dtype != h.dtype:
        weight, bias = weight.to(h.dtype), bias.to(h.dtype)
    return _layernorm_gru(library, gates, weight, bias, h, float(eps), float(update_bias))


def planet_gru_reset(gates: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of PlaNet's cell, whose reset gate acts before the candidate's product.

    Args:
        gates: `[..., 2D]`, in the order reset, update.
        h: `[..., D]`, the carry, with dtypes as in `gru_gates`.

    Returns:
        `sigmoid(reset) * h` and `sigmoid(update)`, both `[..., D]`, contiguous, in `h`'s dtype. Differentiable
        in both arguments.

    Raises:
        ValueError: a shape, dtype or device does not fit `h`'s.

    Source: TensorFlow's GRUBlockCell, in Hafner et al., "Learning Latent Dynamics for Planning from Pixels"
    """
    _check("h", h, 2, gates=gates)
    library = select(gates)
    if library is None:
        return ref.planet_gru_reset(gates, h)
    return _planet_reset(library, gates, h)


def planet_gru_update(update: Tensor, cand: Tensor, h: Tensor) -> Tensor:
    """The second half of PlaNet's cell: `h' = update * h + (1 - update) * tanh(cand)`, so `update` keeps.

    Args:
        update: `[..., D]`, from `planet_gru_reset`, of `h`'s dtype.
        cand: `[..., D]`, with dtypes as in `gru_gates`.
        h: `[..., D]`, the carry.

    Returns:
        h' `[..., D]`, contiguous, in `h`'s dtype. Differentiable in every argument.

    Raises:
        ValueError: a shape, dtype or device does not fit `h`'s.

    Source: as of `planet_gru_reset`
    """
    _check("h", h, 1, cand=cand)
    check_alike(update=update, h=h)
    library = select(cand)
    if library is None:
        return ref.planet_gru_update(update, cand, h)
    return _planet_update(library, update, cand, h)


def lstm_gates(
    input: Tensor, hidden: Tensor, c: Tensor, forget_bias: float = 0.0, order: GateOrder = "ifgo"
) -> tuple[Tensor, Tensor]:
    """The gates of `torch.nn.LSTMCell`, and of World Models' cell.

        c' = sigmoid(f + forget_bias) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

    Args:
        input: `[..., 4D]`, the input's product and bias; the gates are the sum of `input` and `hidden`.
        hidden: like `input`: the product of h and its bias.
        c: `[..., D]`, the cell state, with dtypes as `h` in `gru_gates`.
        forget_bias: a constant of the forget gate: 0 in PyTorch, 1 in World Models (TensorFlow).
        order: of the gates: "ifgo" is PyTorch's, "ijfo" TensorFlow's, where j is the candidate g.

    Returns:
        h' and c', both `[..., D]`, contiguous, in `c`'s dtype. Differentiable in `input`, `hidden` and `c`.

    Raises:
        ValueError: a shape, dtype or device does not fit `c`'s; an unknown order.

    Source: torch.nn.LSTMCell; Ha and Schmidhuber, "World Models", public code
    """
    _check("c", c, 4, input=input, hidden=hidden)
    if order not in ("ifgo", "ijfo"):
        raise ValueError(f"order must be 'ifgo' or 'ijfo', not {order!r}")
    library = select(input)
    if library is None:
        return ref.lstm_gates(input, hidden, c, forget_bias, order)
    return _lstm(library, input, hidden, c, float(forget_bias), order == "ijfo")


def _check(name: str, carry: Tensor, parts: int, **gates: Tensor) -> None:
    """Raises ValueError unless all gates are `[..., parts * D]` beside a carry `[..., D]`, of one dtype that fits."""
    shape, dtype, device = carry.shape, carry.dtype, carry.device
    want = (*shape[:-1], parts * shape[-1]) if shape else None
    gate_dtype = next(iter(gates.values())).dtype
    fits = gate_dtype == dtype or (dtype == torch.float32 and gate_dtype in _HALF)
    for x in gates.values():
        fits = fits and x.shape == want and x.dtype == gate_dtype and x.device == device
    if not (fits and dtype.is_floating_point):
        expected = ", ".join(f"{gate} [..., {f'{parts} * ' if parts > 1 else ''}D]" for gate in gates)
        got = ", ".join(f"{n} {list(x.shape)} {x.dtype} {x.device}" for n, x in [(name, carry), *gates.items()])
        raise ValueError(
            f"expected {expected} beside {name} [..., D], of its floating dtype or 16 bits beside float32, got {got}"
        )


_gru = Operator("gru_gates", vmap_rows)
_block_gru = Operator("block_gru_gates", vmap_rows)
_layernorm_gru = Operator("layernorm_gru_gates", vmap_loop)
_planet_reset = Operator("planet_gru_reset", vmap_rows)
_planet_update = Operator("planet_gru_update", vmap_rows)
_lstm = Operator("lstm_gates", vmap_rows)
