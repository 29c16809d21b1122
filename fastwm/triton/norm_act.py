"""Norm and activation: a program takes a tile of rows; backwards it goes through several and sums d_weight."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

_TILE = 1024  # elements, for rows that are shorter
_MAX_PROGRAMS = 512  # backwards


@triton.jit
def _sigmoid(z):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-z))


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    y,
    stats,
    rows,
    width,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * width + column[None, :]
    acc = weight.dtype.element_ty
    xhat = tl.load(x + at, mask, 0).to(acc)
    if bias is not None:
        mean = tl.sum(xhat, 1) / width
        tl.store(stats + rows + row, mean, row < rows)
        xhat = tl.where(mask, xhat - mean[:, None], 0)
    inv_std = 1 / tl.sqrt(tl.sum(xhat * xhat, 1) / width + EPS)
    tl.store(stats + row, inv_std, row < rows)
    z = xhat * inv_std[:, None] * tl.load(weight + column, inside, 0)[None, :]
    if bias is not None:
        z += tl.load(bias + column, inside, 0)[None, :]
    if ACT == 1:
        z = z * _sigmoid(z)
    elif ACT == 2:
        z = tl.where(z > 0, z, tl.exp(tl.where(z > 0, 0, z)) - 1)
    tl.store(y + at, z.to(y.dtype.element_ty), mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    x,
    weight,
    bias,
    stats,
    d_x,
    share,
    rows,
    width,
    tiles,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    acc = weight.dtype.element_ty
    w = tl.load(weight + column, inside, 0)[None, :]
    d_weight = tl.zeros([ROWS, WIDTH], acc)
    d_bias = tl.zeros([ROWS, WIDTH], acc)
    for tile in range(program, tiles, programs):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * width + column[None, :]
        inv_std = tl.load(stats + row, row < rows, 0)[:, None]
        xhat = tl.load(x + at, mask, 0).to(acc)
        if bias is not None:
            xhat = tl.where(mask, xhat - tl.load(stats + rows + row, row < rows, 0)[:, None], 0)
        xhat *= inv_std
        z = xhat * w
        if bias is not None:
            z += tl.load(bias + column, inside, 0)[None, :]
        d_z = tl.load(grad + at, mask, 0).to(acc)
        if ACT == 1:
            s = _sigmoid(z)
            d_z *= s + z * s * (1 - s)
        elif ACT == 2:
            d_z *= tl.where(z > 0, 1, tl.exp(tl.where(z > 0, 0, z)))
        d_weight += d_z * xhat
        d_bias += d_z
        g = d_z * w
        d = g - xhat * (tl.sum(g * xhat, 1) / width)[:, None]
        if bias is not None:
            d -= (tl.sum(g, 1) / width)[:, None]
        tl.store(d_x + at, (inv_std * d).to(d_x.dtype.element_ty), mask)
    tl.store(share + program * width + column, tl.sum(d_weight, 0), inside)
    if bias is not None:
        tl.store(share + (programs + program) * width + column, tl.sum(d_bias, 0), inside)


def _tile(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"ROWS": max(1, _TILE // block), "WIDTH": block}


@operator
def norm_act(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, activation: int) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    y = empty(x)
    stats = weight.new_empty((1 if bias is None else 2, *x.shape[:-1]))
    if rows:
        tile = _tile(width)
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(rows, tile["ROWS"]),)](
                x, weight, bias, y, stats, rows, width, EPS=eps, ACT=activation, **tile
            )
    return y, stats


@operator
def norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stats: Tensor, activation: int
) -> tuple[Tensor, Tensor]:
    grad, x, weight, stats = grad.contiguous(), x.contiguous(), weight.contiguous(), stats.contiguous()
    bias = None if bias is None else bias.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    tile = _tile(width)
    tiles = triton.cdiv(rows, tile["ROWS"])
    programs = min(tiles, _MAX_PROGRAMS)
    d_x, share = empty(x), weight.new_empty((len(stats), programs, width))
    if rows:
        with torch.cuda.device_of(x):
            _backward[(programs,)](grad, x, weight, bias, stats, d_x, share, rows, width, tiles, ACT=activation, **tile)
    return d_x, share.sum(1)
