"""The gates of recurrent cells: one program a block of elements; a row, where a LayerNorm stands in front."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

BLOCK = 256
CHUNKS, ROWS_PER_CHUNK = 132, 4  # of the rows over which the norm's weights' gradients are summed


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    t = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, t - 1, 1 - t) / (1 + t)


@triton.jit
def _load(array, at, mask, like):  # type: ignore[no-untyped-def]
    """In float64 where `like` is, else in float32."""
    acc = tl.float64 if like.dtype.element_ty == tl.float64 else tl.float32
    return tl.load(array + at, mask, other=0).to(acc)


@triton.jit
def _store(array, at, x, mask):  # type: ignore[no-untyped-def]
    tl.store(array + at, x.to(array.dtype.element_ty), mask)


@triton.jit
def _elements(N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i, i < N


# The constants of gates are constants of the kernels because a float argument would arrive rounded to float32.
# `i` counts the carry's elements, and the first of an element's P gates lies at i // W * P * W + i % W.


@triton.jit
def _gru(input, hidden, h, out, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 3 * W + i % W
    r = _sigmoid(_load(input, at, mask, h) + _load(hidden, at, mask, h))
    z = _sigmoid(_load(input, at + W, mask, h) + _load(hidden, at + W, mask, h))
    n = _tanh(_load(input, at + 2 * W, mask, h) + r * _load(hidden, at + 2 * W, mask, h))
    _store(out, i, n + z * (_load(h, i, mask, h) - n), mask)


@triton.jit
def _gru_backward(grad, input, hidden, h, d_input, d_hidden, d_h, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 3 * W + i % W
    g = _load(grad, i, mask, h)
    r = _sigmoid(_load(input, at, mask, h) + _load(hidden, at, mask, h))
    z = _sigmoid(_load(input, at + W, mask, h) + _load(hidden, at + W, mask, h))
    hidden_n = _load(hidden, at + 2 * W, mask, h)
    n = _tanh(_load(input, at + 2 * W, mask, h) + r * hidden_n)
    d_n = g * (1 - z) * (1 - n * n)
    d_r = d_n * hidden_n * r * (1 - r)
    d_z = g * (_load(h, i, mask, h) - n) * z * (1 - z)
    _store(d_input, at, d_r, mask)
    _store(d_hidden, at, d_r, mask)
    _store(d_input, at + W, d_z, mask)
    _store(d_hidden, at + W, d_z, mask)
    _store(d_input, at + 2 * W, d_n, mask)
    _store(d_hidden, at + 2 * W, d_n * r, mask)
    _store(d_h, i, g * z, mask)


@triton.jit
def _dreamer(reset, cand, update, h, UPDATE_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    return h + _sigmoid(update + UPDATE_BIAS) * (_tanh(_sigmoid(reset) * cand) - h)


@triton.jit
def _dreamer_backward(g, reset, cand, update, h, UPDATE_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    r = _sigmoid(reset)
    c = _tanh(r * cand)
    u = _sigmoid(update + UPDATE_BIAS)
    d_c = g * u * (1 - c * c)
    return d_c * cand * r * (1 - r), d_c * r, g * (c - h) * u * (1 - u), g * (1 - u)


@triton.jit
def _block_gru(gates, h, out, N, W, UPDATE_BIAS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 3 * W + i % W
    reset, cand = _load(gates, at, mask, h), _load(gates, at + W, mask, h)
    update = _load(gates, at + 2 * W, mask, h)
    _store(out, i, _dreamer(reset, cand, update, _load(h, i, mask, h), UPDATE_BIAS), mask)


@triton.jit
def _block_gru_backward(grad, gates, h, d_gates, d_h, N, W, UPDATE_BIAS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 3 * W + i % W
    reset, cand = _load(gates, at, mask, h), _load(gates, at + W, mask, h)
    update = _load(gates, at + 2 * W, mask, h)
    d_reset, d_cand, d_update, d = _dreamer_backward(
        _load(grad, i, mask, h), reset, cand, update, _load(h, i, mask, h), UPDATE_BIAS
    )
    _store(d_gates, at, d_reset, mask)
    _store(d_gates, at + W, d_cand, mask)
    _store(d_gates, at + 2 * W, d_update, mask)
    _store(d_h, i, d, mask)


@triton.jit
def _planet_reset(gates, h, reset_h, update, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 2 * W + i % W
    _store(reset_h, i, _sigmoid(_load(gates, at, mask, h)) * _load(h, i, mask, h), mask)
    _store(update, i, _sigmoid(_load(gates, at + W, mask, h)), mask)


@triton.jit
def _planet_reset_backward(grad_reset_h, grad_update, gates, h, d_gates, d_h, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    at = i // W * 2 * W + i % W
    r, u = _sigmoid(_load(gates, at, mask, h)), _sigmoid(_load(gates, at + W, mask, h))
    g = _load(grad_reset_h, i, mask, h)
    _store(d_gates, at, g * _load(h, i, mask, h) * r * (1 - r), mask)
    _store(d_gates, at + W, _load(grad_update, i, mask, h) * u * (1 - u), mask)
    _store(d_h, i, g * r, mask)


@triton.jit
def _planet_update(update, cand, h, out, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    c = _tanh(_load(cand, i, mask, h))
    _store(out, i, c + _load(update, i, mask, h) * (_load(h, i, mask, h) - c), mask)


@triton.jit
def _planet_update_backward(grad, update, cand, h, d_update, d_cand, d_h, N, W, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, mask = _elements(N, BLOCK)
    g, u, c = _load(grad, i, mask, h), _load(update, i, mask, h), _tanh(_load(cand, i, mask, h))
    _store(d_update, i, g * (_load(h, i, mask, h) - c), mask)
    _store(d_cand, i, g * (1 - u) * (1 - c * c), mask)
    _store(d_h, i, g * u, mask)


@triton.jit
def _lstm_gates(input, hidden, c, at, W, mask, FORGET_BIAS: tl.constexpr, IJFO: tl.constexpr):  # type: ignore[no-untyped-def]
    first: tl.constexpr = 2 if IJFO else 1
    f_at, g_at = at + first * W, at + (3 - first) * W
    i = _sigmoid(_load(input, at, mask, c) + _load(hidden, at, mask, c))
    f = _sigmoid(_load(input, f_at, mask, c) + _load(hidden, f_at, mask, c) + FORGET_BIAS)
    g = _tanh(_load(input, g_at, mask, c) + _load(hidden, g_at, mask, c))
    o = _sigmoid(_load(input, at + 3 * W, mask, c) + _load(hidden, at + 3 * W, mask, c))
    return i, f, g, o, f_at, g_at


@triton.jit
def _lstm(input, hidden, c, next_h, next_c, N, W, FORGET_BIAS: tl.constexpr, IJFO: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    e, mask = _elements(N, BLOCK)
    at = e // W * 4 * W + e % W
    i, f, g, o, _, _ = _lstm_gates(input, hidden, c, at, W, mask, FORGET_BIAS, IJFO)
    new = f * _load(c, e, mask, c) + i * g
    _store(next_c, e, new, mask)
    _store(next_h, e, o * _tanh(new), mask)


@triton.jit
def _lstm_backward(  # type: ignore[no-untyped-def]
    grad_h,
    grad_c,
    input,
    hidden,
    c,
    d_gates,
    d_c,
    N,
    W,
    FORGET_BIAS: tl.constexpr,
    IJFO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e, mask = _elements(N, BLOCK)
    at = e // W * 4 * W + e % W
    i, f, g, o, f_at, g_at = _lstm_gates(input, hidden, c, at, W, mask, FORGET_BIAS, IJFO)
    old, d_out = _load(c, e, mask, c), _load(grad_h, e, mask, c)
    t = _tanh(f * old + i * g)
    d_new = _load(grad_c, e, mask, c) + d_out * o * (1 - t * t)
    _store(d_gates, at, d_new * g * i * (1 - i), mask)
    _store(d_gates, f_at, d_new * old * f * (1 - f), mask)
    _store(d_gates, g_at, d_new * i * (1 - g * g), mask)
    _store(d_gates, at + 3 * W, d_out * t * o * (1 - o), mask)
    _store(d_c, e, d_new * f, mask)


@triton.jit
def _layernorm_gru(  # type: ignore[no-untyped-def]
    gates, weight, bias, h, out, stats, W, EPS: tl.constexpr, UPDATE_BIAS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    mask = j < W
    at = row * 3 * W + j
    x, y, z = _load(gates, at, mask, h), _load(gates, at + W, mask, h), _load(gates, at + 2 * W, mask, h)
    mean = tl.sum(x + y + z) / (3 * W)
    x, y, z = tl.where(mask, x - mean, 0), tl.where(mask, y - mean, 0), tl.where(mask, z - mean, 0)
    rstd = 1 / tl.sqrt(tl.sum(x * x + y * y + z * z) / (3 * W) + EPS)
    tl.store(stats + 2 * row, mean)
    tl.store(stats + 2 * row + 1, rstd)
    reset = x * rstd * _load(weight, j, mask, h) + _load(bias, j, mask, h)
    cand = y * rstd * _load(weight, j + W, mask, h) + _load(bias, j + W, mask, h)
    update = z * rstd * _load(weight, j + 2 * W, mask, h) + _load(bias, j + 2 * W, mask, h)
    i = row * W + j
    _store(out, i, _dreamer(reset, cand, update, _load(h, i, mask, h), UPDATE_BIAS), mask)


@triton.jit
def _layernorm_gru_backward(  # type: ignore[no-untyped-def]
    grad,
    gates,
    weight,
    bias,
    h,
    stats,
    d_gates,
    d_h,
    partial,
    rows,
    W,
    UPDATE_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk, chunks = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    j = tl.arange(0, BLOCK)
    mask = j < W
    acc = tl.float64 if h.dtype.element_ty == tl.float64 else tl.float32
    w0, w1, w2 = _load(weight, j, mask, h), _load(weight, j + W, mask, h), _load(weight, j + 2 * W, mask, h)
    b0, b1, b2 = _load(bias, j, mask, h), _load(bias, j + W, mask, h), _load(bias, j + 2 * W, mask, h)
    dw0, dw1, dw2 = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    db0, db1, db2 = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    for row in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
        mean, rstd = tl.load(stats + 2 * row), tl.load(stats + 2 * row + 1)
        at, i = row * 3 * W + j, row * W + j
        n0 = (_load(gates, at, mask, h) - mean) * rstd
        n1 = (_load(gates, at + W, mask, h) - mean) * rstd
        n2 = (_load(gates, at + 2 * W, mask, h) - mean) * rstd
        d0, d1, d2, d = _dreamer_backward(
            _load(grad, i, mask, h), n0 * w0 + b0, n1 * w1 + b1, n2 * w2 + b2, _load(h, i, mask, h), UPDATE_BIAS
        )
        _store(d_h, i, d, mask)
        dw0, dw1, dw2 = dw0 + d0 * n0, dw1 + d1 * n1, dw2 + d2 * n2
        db0, db1, db2 = db0 + d0, db1 + d1, db2 + d2
        d0, d1, d2 = d0 * w0, d1 * w1, d2 * w2
        total = tl.sum(tl.where(mask, d0 + d1 + d2, 0)) / (3 * W)
        dot = tl.sum(tl.where(mask, d0 * n0 + d1 * n1 + d2 * n2, 0)) / (3 * W)
        _store(d_gates, at, rstd * (d0 - total - n0 * dot), mask)
        _store(d_gates, at + W, rstd * (d1 - total - n1 * dot), mask)
        _store(d_gates, at + 2 * W, rstd * (d2 - total - n2 * dot), mask)
    at = chunk * 6 * W + j  # partial: [chunks, 2, 3W]
    tl.store(partial + at, dw0, mask)
    tl.store(partial + at + W, dw1, mask)
    tl.store(partial + at + 2 * W, dw2, mask)
    tl.store(partial + at + 3 * W, db0, mask)
    tl.store(partial + at + 4 * W, db1, mask)
    tl.store(partial + at + 5 * W, db2, mask)


def _run(
    kernel: Any, carry: Tensor, inputs: list[Tensor], outputs: list[Tensor], blocks: int = 1, **constants: Any
) -> None:
    """A kernel over the elements of the carry."""
    elements, width = carry.numel(), carry.shape[-1] // blocks
    if elements:
        with torch.cuda.device_of(carry):
            grid = (triton.cdiv(elements, BLOCK),)
            kernel[grid](*(x.contiguous() for x in inputs), *outputs, elements, width, **constants, BLOCK=BLOCK)


@operator
def gru_gates(input: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
    out = empty(h)
    _run(_gru, h, [input, hidden, h], [out])
    return out


@operator
def gru_gates_backward(grad: Tensor, input: Tensor, hidden: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_input, d_hidden, d_h = empty(input), empty(hidden), empty(h)
    _run(_gru_backward, h, [grad, input, hidden, h], [d_input, d_hidden, d_h])
    return d_input, d_hidden, d_h


@operator
def block_gru_gates(gates: Tensor, h: Tensor, blocks: int, update_bias: float) -> Tensor:
    out = empty(h)
    _run(_block_gru, h, [gates, h], [out], blocks, UPDATE_BIAS=update_bias)
    return out


@operator
def block_gru_gates_backward(
    grad: Tensor, gates: Tensor, h: Tensor, blocks: int, update_bias: float
) -> tuple[Tensor, Tensor]:
    d_gates, d_h = empty(gates), empty(h)
    _run(_block_gru_backward, h, [grad, gates, h], [d_gates, d_h], blocks, UPDATE_BIAS=update_bias)
    return d_gates, d_h


@operator
def layernorm_gru_gates(
    gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor, eps: float, update_bias: float
) -> tuple[Tensor, Tensor]:
    gates, weight, bias, h = gates.contiguous(), weight.contiguous(), bias.contiguous(), h.contiguous()
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    width = h.shape[-1]
    out, stats = empty(h), h.new_empty((*h.shape[:-1], 2), dtype=dtype)
    if h.numel():
        with torch.cuda.device_of(h):
            _layernorm_gru[(h.numel() // width,)](
                gates, weight, bias, h, out, stats, width,
                EPS=eps, UPDATE_BIAS=update_bias, BLOCK=triton.next_power_of_2(width),
            )  # fmt: skip
    return out, stats


@operator
def layernorm_gru_gates_backward(
    grad: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor, stats: Tensor, update_bias: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, gates, weight, bias = grad.contiguous(), gates.contiguous(), weight.contiguous(), bias.contiguous()
    h, stats = h.contiguous(), stats.contiguous()
    d_gates, d_h = empty(gates), empty(h)
    width = h.shape[-1]
    rows = h.numel() // width
    chunks = max(1, min(CHUNKS, triton.cdiv(rows, ROWS_PER_CHUNK)))
    partial = stats.new_empty(chunks, 2, 3 * width)
    with torch.cuda.device_of(h):
        _layernorm_gru_backward[(chunks,)](
            grad, gates, weight, bias, h, stats, d_gates, d_h, partial, rows, width,
            UPDATE_BIAS=update_bias, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip
    d_weight, d_bias = partial.sum(0).to(weight.dtype).unbind()
    return d_gates, d_weight.clone(), d_bias.clone(), d_h


@operator
def planet_gru_reset(gates: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    reset_h, update = empty(h), empty(h)
    _run(_planet_reset, h, [gates, h], [reset_h, update])
    return reset_h, update


@operator
def planet_gru_reset_backward(
    grad_reset_h: Tensor, grad_update: Tensor, gates: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    d_gates, d_h = empty(gates), empty(h)
    _run(_planet_reset_backward, h, [grad_reset_h, grad_update, gates, h], [d_gates, d_h])
    return d_gates, d_h


@operator
def planet_gru_update(update: Tensor, cand: Tensor, h: Tensor) -> Tensor:
    out = empty(h)
    _run(_planet_update, h, [update, cand, h], [out])
    return out


@operator
def planet_gru_update_backward(grad: Tensor, update: Tensor, cand: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_update, d_cand, d_h = empty(update), empty(cand), empty(h)
    _run(_planet_update_backward, h, [grad, update, cand, h], [d_update, d_cand, d_h])
    return d_update, d_cand, d_h


@operator
def lstm_gates(input: Tensor, hidden: Tensor, c: Tensor, forget_bias: float, ijfo: bool) -> tuple[Tensor, Tensor]:
    next_h, next_c = empty(c), empty(c)
    _run(_lstm, c, [input, hidden, c], [next_h, next_c], FORGET_BIAS=forget_bias, IJFO=ijfo)
    return next_h, next_c


@operator
def lstm_gates_backward(
    grad_h: Tensor, grad_c: Tensor, input: Tensor, hidden: Tensor, c: Tensor, forget_bias: float, ijfo: bool
) -> tuple[Tensor, Tensor]:
    d_gates, d_c = empty(input), empty(c)
    _run(_lstm_backward, c, [grad_h, grad_c, input, hidden, c], [d_gates, d_c], FORGET_BIAS=forget_bias, IJFO=ijfo)
    return d_gates, d_c
