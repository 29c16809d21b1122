"""Whole sequences of the recurrent cells in one call: the arguments of `cell_steps`, with time in front.

The input's products wait for no step: they are one product of torch over all steps. The operator walks the chain of
what depends on the carry, forward, and backward in the mirrored loop.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    autocast_float32,
    bf16_products,
    check_tensor,
    forced_backend,
    no_vmap,
)
from fastwm.ops._declared import numbers
from fastwm.ops.cell_steps import InputOrder
from fastwm.ops.cells import GateOrder
from fastwm.ops.linear import linear

_HALF = (torch.bfloat16, torch.float16)
_CELLS = numbers("ScanCell")


def gru_scan(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    is_first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A whole sequence of `torch.nn.GRU`'s cell, which is also Dreamer V1's: `h_t = gru_step(x_t, h_{t-1})`.

        r, z = sigmoid(W_rz x + U_rz h + b),   n = tanh(W_n x + b_n + r (U_n h + c_n)),   h' = (1 - z) n + z h

    Where `is_first`, the carry before the step is zero, and no gradient passes.

    Args:
        x: `[T, B, X]`, T >= 1; h: `[B, D]`, the carry before the first step, float32 or float64 for the kernel.
        weight_ih, weight_hh, bias_ih, bias_hh: `[3D, X]`, `[3D, D]`, `[3D]`, `[3D]`, as in torch.nn.GRU, of h's dtype.
            16-bit weights beside a float32 carry, other dtypes and other devices are served by plain PyTorch.
        is_first: `[T, B]` bool. Without it, cuDNN's persistent kernel serves a GPU, where no backend is forced.

    Returns:
        every step's carry `[T, B, D]`, and the last one `[B, D]`, in h's dtype. Differentiable once in all but
        `is_first`; with the `ref` backend any number of times. Under autocast to bfloat16 the products are in bfloat16,
        within the chain with float32 sums where the CPU has them; the carry and the gates stay float32 (cuDNN: as
        torch.nn.GRU has them).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0, or D = 0.

    Source: torch.nn.GRU; Keras GRUCell with reset_after=True, whose columns are z, r, n
    """
    (h,) = autocast_float32(h)
    X, D = x.shape[-1], h.shape[-1]
    expected = {"weight_ih": (3 * D, X), "weight_hh": (3 * D, D), "bias_ih": (3 * D,), "bias_hh": (3 * D,)}
    _check(x, is_first, {"h": h}, expected, (weight_ih, weight_hh, bias_ih, bias_hh))
    if _is_cudnns(x, h, weight_ih, is_first):
        return _torchs_gru(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    library = _library(h, weight_ih)
    if library is None:
        return ref.gru_scan(x, h, weight_ih, weight_hh, bias_ih, bias_hh, is_first)
    bias, own = bias_ih, None
    if bias_hh is not None:  # the candidate's is inside the reset gate, those of r and z may be added before
        bias, own = _sum(bias_ih, F.pad(bias_hh[: 2 * D], (0, D))), bias_hh[2 * D :]
    input = _of_inputs(x, weight_ih, bias)
    output, last, _ = _scan(library, "gru", input, h, None, weight_hh, None, own, is_first)
    return output, last


def lstm_scan(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole sequence of `torch.nn.LSTM`'s cell, or of World Models' with `forget_bias=1`.

        c' = sigmoid(f + forget_bias) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

    Args:
        x: `[T, B, X]`, T >= 1; h, c: `[B, D]`, the carries before the first step, of one dtype. See `gru_scan`.
        weight_ih, weight_hh, bias_ih, bias_hh: `[4D, X]`, `[4D, D]`, `[4D]`, `[4D]`, as in torch.nn.LSTM.
        is_first: `[T, B]` bool; it resets both carries.
        forget_bias: a constant of the forget gate; order: of the rows of weights and biases, see `lstm_gates`.

    Returns:
        every step's h `[T, B, D]`, the last h and the last c, both `[B, D]`. Differentiable, and under autocast, as
        `gru_scan`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0, or D = 0, or an unknown order.

    Source: torch.nn.LSTM; Ha and Schmidhuber, "World Models", public code
    """
    h, c = autocast_float32(h, c)
    X, D = x.shape[-1], h.shape[-1]
    expected = {"weight_ih": (4 * D, X), "weight_hh": (4 * D, D), "bias_ih": (4 * D,), "bias_hh": (4 * D,)}
    _check(x, is_first, {"h": h, "c": c}, expected, (weight_ih, weight_hh, bias_ih, bias_hh))
    if order not in ("ifgo", "ijfo"):
        raise ValueError(f"order must be 'ifgo' or 'ijfo', not {order!r}")
    if order == "ifgo" and _is_cudnns(x, h, weight_ih, is_first):
        return _torchs_lstm(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, forget_bias)
    library = _library(h, weight_ih)
    if library is None:
        return ref.lstm_scan(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, is_first, forget_bias, order)
    input = _of_inputs(x, weight_ih, _sum(bias_ih, bias_hh))
    return _scan(
        library, "lstm", input, h, c, weight_hh, None, None, is_first,
        gate_bias=float(forget_bias), ijfo=order == "ijfo",
    )  # fmt: skip


def layernorm_gru_scan(
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
) -> tuple[Tensor, Tensor]:
    """A whole sequence of the cell of DreamerV2 and of DreamerV3's first version.

        r, c, u = LayerNorm(W [x, h] + b),   u = sigmoid(u + update_bias),   h' = u tanh(sigmoid(r) c) + (1 - u) h

    Args:
        x: `[T, B, X]`, T >= 1; h: `[B, D]`, the carry before the first step. See `gru_scan`.
        weight, bias: `[3D, X + D]`, `[3D]`, rows in the order reset, cand, update. V3 has no bias.
        norm_weight, norm_bias: `[3D]`, of the LayerNorm over all three.
        is_first: `[T, B]` bool.
        order: of the product's inputs: "xh" in DreamerV2, "hx" in DreamerV3.
        eps: of the norm; update_bias: a constant of the update gate.

    Returns:
        every step's carry `[T, B, D]`, and the last one `[B, D]`. Differentiable, and under autocast, as `gru_scan`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0, or D = 0, or an unknown order.

    Source: Hafner et al., "Mastering Atari with Discrete World Models", GRUCell of the public code
    """
    (h,) = autocast_float32(h)
    X, D = x.shape[-1], h.shape[-1]
    expected = {"weight": (3 * D, X + D), "bias": (3 * D,), "norm_weight": (3 * D,), "norm_bias": (3 * D,)}
    _check(x, is_first, {"h": h}, expected, (weight, bias, norm_weight, norm_bias))
    if order not in ("xh", "hx"):
        raise ValueError(f"order must be 'xh' or 'hx', not {order!r}")
    library = _library(h, weight)
    if library is None:
        return ref.layernorm_gru_scan(
            x, h, weight, bias, norm_weight, norm_bias, is_first, order, eps, update_bias
        )  # fmt: skip
    of_x, of_h = weight.split([X, D], 1) if order == "xh" else weight.split([D, X], 1)[::-1]
    input = _of_inputs(x, of_x, bias)
    norm, constants = (norm_weight, norm_bias), (float(eps), float(update_bias))
    output, last, _ = _scan(library, "layernorm_gru", input, h, None, of_h, *norm, is_first, *constants)
    return output, last


def planet_gru_scan(
    x: Tensor,
    h: Tensor,
    weight_ru: Tensor,
    bias_ru: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    is_first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A whole sequence of PlaNet's cell, TensorFlow's GRUBlockCell: the reset gate acts before the recurrent product.

        r, u = sigmoid([x, h] W_ru + b_ru),   c = tanh([x, r h] W_c + b_c),   h' = u h + (1 - u) c

    Args:
        x: `[T, B, X]`, T >= 1; h: `[B, D]`, the carry before the first step. See `gru_scan`.
        weight_ru, bias_ru: `[2D, X + D]`, `[2D]`, rows in the order r, u.
        weight_c, bias_c: `[D, X + D]`, `[D]`. Both products take x first, h second.
        is_first: `[T, B]` bool.

    Returns:
        every step's carry `[T, B, D]`, and the last one `[B, D]`. Differentiable, and under autocast, as `gru_scan`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0, or D = 0.

    Source: TensorFlow's GRUBlockCell, in Hafner et al., "Learning Latent Dynamics for Planning from Pixels"
    """
    (h,) = autocast_float32(h)
    X, D = x.shape[-1], h.shape[-1]
    expected = {"weight_ru": (2 * D, X + D), "bias_ru": (2 * D,), "weight_c": (D, X + D), "bias_c": (D,)}
    _check(x, is_first, {"h": h}, expected, (weight_ru, bias_ru, weight_c, bias_c))
    library = _library(h, weight_ru)
    if library is None:
        return ref.planet_gru_scan(x, h, weight_ru, bias_ru, weight_c, bias_c, is_first)
    of_x, of_h = torch.cat([weight_ru, weight_c]).split([X, D], 1)
    input = _of_inputs(x, of_x, torch.cat([bias_ru, bias_c]))
    output, last, _ = _scan(library, "planet_gru", input, h, None, of_h, None, None, is_first)
    return output, last


def _check(
    x: Tensor,
    is_first: Tensor | None,
    carries: dict[str, Tensor],
    expected: dict[str, tuple[int, ...]],
    weights: tuple[Tensor | None, ...],
) -> None:
    h = next(iter(carries.values()))
    if x.dim() != 3 or len(x) == 0 or not x.dtype.is_floating_point:
        raise ValueError(f"expected x [T, B, X] with T >= 1, floating-point, got {list(x.shape)} {x.dtype}")
    if h.dim() != 2 or h.shape[1] == 0 or not h.dtype.is_floating_point:
        raise ValueError(f"expected h [B, D] with D >= 1, floating-point, got {list(h.shape)} {h.dtype}")
    T, B = x.shape[:2]
    for name, carry in carries.items():
        check_tensor(name, carry, (B, h.shape[1]), x, h.dtype)
    if is_first is not None:
        check_tensor("is_first", is_first, (T, B), x, torch.bool)
    for name, w in zip(expected, weights):
        if w is None and name not in ("bias", "bias_ih", "bias_hh"):
            raise ValueError(f"expected {name} {list(expected[name])}, got None")
    dtype = next(w.dtype for w in weights if w is not None)
    if dtype != h.dtype and not (h.dtype == torch.float32 and dtype in _HALF):
        raise ValueError(f"expected weights of h's dtype, or of 16 bits beside a float32 h, got {dtype} and {h.dtype}")
    for (name, shape), w in zip(expected.items(), weights):
        if w is not None:
            check_tensor(name, w, shape, x, dtype)


def _is_cudnns(x: Tensor, h: Tensor, weight: Tensor, is_first: Tensor | None) -> bool:
    """Whether cuDNN takes the sequence: a plain cell without resets, whose weights it keeps in registers."""
    if is_first is not None or not h.is_cuda or forced_backend() is not None or torch.compiler.is_compiling():
        return False
    alike = x.dtype == h.dtype == weight.dtype and x.numel() > 0
    return alike and bool(torch.backends.cudnn.is_acceptable(h))


def _torchs_gru(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor]:
    weights = [weight_ih, weight_hh, *_biases(weight_ih, bias_ih, bias_hh)]
    output, h_T = torch.gru(x, h[None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    return output.to(h.dtype), h_T[0].to(h.dtype)


def _torchs_lstm(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None,
    bias_hh: Tensor | None, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    bias_ih, bias_hh = _biases(weight_ih, bias_ih, bias_hh)
    if forget_bias:
        bias_ih = bias_ih + F.pad(bias_ih.new_full(h.shape[-1:], forget_bias), (h.shape[-1], 2 * h.shape[-1]))
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    output, h_T, c_T = torch.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    return output.to(h.dtype), h_T[0].to(h.dtype), c_T[0].to(h.dtype)


def _biases(weight: Tensor, *biases: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(weight.new_zeros(len(weight)) if bias is None else bias for bias in biases)


def _library(h: Tensor, weight: Tensor) -> Library | None:
    return _forward.library(h) if h.dtype == weight.dtype and h.dtype in KERNEL_DTYPES else None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _of_inputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The input products of all steps. Autocast computes them in its dtype; the result is in the weights' dtype."""
    return linear(x.to(weight.dtype), weight, bias, bf16_products(x))


def _scan(
    library: Library,
    cell: str,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    is_first: Tensor | None,
    eps: float = 0.0,
    gate_bias: float = 0.0,
    ijfo: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The chain: input `[T, B, gates * D]`, weight `[gates * D, D]` -> every h, the last h, an LSTM's last c."""
    tensors = (input, h, c, weight, scale, bias)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    numbers_of = eps, gate_bias, ijfo, save, bf16_products(h)
    output, last_h, last_c = _forward(library, *tensors, is_first, _CELLS[cell], *numbers_of)
    return output, last_h, last_c


_forward = Operator("cell_scan", no_vmap("cell_scan"))
