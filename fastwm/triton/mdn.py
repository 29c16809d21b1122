"""Mixture densities: one program a block of mixtures by their dimensions (one, unless joint); classes in turn."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

BLOCK = 128  # numbers a program
HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2 * math.pi))
LOWEST = tl.constexpr(-3.4e38)  # as a first maximum: with -infinity, a class of no weight would give NaN


@triton.jit
def _add(largest, total, x):  # type: ignore[no-untyped-def]
    """log(sum of exponentials) = largest + log(total), with one term more."""
    larger = x > largest
    e = tl.exp(tl.where(larger, largest - x, x - largest))
    return tl.where(larger, x, largest), tl.where(larger, total * e + 1, total + e)


@triton.jit
def _gaussian(mean, log_std, y, at, mask):  # type: ignore[no-untyped-def]
    """exp(-log_std), the deviation in standard deviations, and -log density but for a constant: [MIX, DIMS]."""
    acc = y.dtype
    s = tl.load(log_std + at, mask, 0).to(acc)
    inverse_std = tl.exp(-s)
    deviation = (y - tl.load(mean + at, mask, 0).to(acc)) * inverse_std
    return inverse_std, deviation, tl.where(mask, s + 0.5 * deviation * deviation, 0)


@triton.jit
def _forward(logits, mean, log_std, value, nll, N, Z, K, MIX: tl.constexpr, DIMS: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64) * MIX + tl.arange(0, MIX)
    z = tl.arange(0, DIMS)
    valid = n < N
    mask = valid[:, None] & (z < Z)[None, :]
    at = n[:, None] * Z + z[None, :]
    y = tl.load(value + at, mask, 0)
    largest_w = tl.full([MIX], LOWEST, y.dtype)
    largest_d = tl.full([MIX], LOWEST, y.dtype)
    total_w = tl.zeros([MIX], y.dtype)
    total_d = tl.zeros([MIX], y.dtype)
    for k in range(K):
        logit = tl.load(logits + n * K + k, valid, 0)
        _, _, surprise = _gaussian(mean, log_std, y, at * K + k, mask)
        largest_w, total_w = _add(largest_w, total_w, logit)
        largest_d, total_d = _add(largest_d, total_d, logit - tl.sum(surprise, 1))
    constant = tl.full([MIX], HALF_LOG_2PI, y.dtype) * Z
    tl.store(nll + n, largest_w - largest_d + tl.log(total_w / total_d) + constant, valid)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    logits,
    mean,
    log_std,
    value,
    d_logits,
    d_mean,
    d_log_std,
    d_value,
    N,
    Z,
    K,
    MIX: tl.constexpr,
    DIMS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * MIX + tl.arange(0, MIX)
    z = tl.arange(0, DIMS)
    valid = n < N
    mask = valid[:, None] & (z < Z)[None, :]
    at = n[:, None] * Z + z[None, :]
    y = tl.load(value + at, mask, 0)
    largest_w = tl.full([MIX], LOWEST, y.dtype)
    largest_d = tl.full([MIX], LOWEST, y.dtype)
    total_w = tl.zeros([MIX], y.dtype)
    total_d = tl.zeros([MIX], y.dtype)
    for k in range(K):
        logit = tl.load(logits + n * K + k, valid, 0)
        _, _, surprise = _gaussian(mean, log_std, y, at * K + k, mask)
        largest_w, total_w = _add(largest_w, total_w, logit)
        largest_d, total_d = _add(largest_d, total_d, logit - tl.sum(surprise, 1))
    g = tl.load(grad + n, valid, 0)
    dy = tl.zeros([MIX, DIMS], y.dtype)
    for k in range(K):
        logit = tl.load(logits + n * K + k, valid, 0)
        inverse_std, deviation, surprise = _gaussian(mean, log_std, y, at * K + k, mask)
        r = g / total_d * tl.exp(logit - tl.sum(surprise, 1) - largest_d)  # grad times responsibility
        tl.store(d_logits + n * K + k, g / total_w * tl.exp(logit - largest_w) - r, valid)
        share = tl.broadcast_to(r[:, None], [MIX, DIMS])
        some = share != 0  # else 0 * infinity would be NaN
        pull = tl.where(some, share * deviation * inverse_std, 0)
        tl.store(d_mean + at * K + k, -pull, mask)
        tl.store(d_log_std + at * K + k, tl.where(some, share - share * deviation * deviation, 0), mask)
        dy += pull
    tl.store(d_value + at, dy, mask)


@triton.jit  # what depends on the temperature is constant, as float arguments arrive rounded to float32
def _sample(  # type: ignore[no-untyped-def]
    logits,
    mean,
    log_std,
    uniform,
    normal,
    sample,
    N,
    Z,
    K,
    SCALE: tl.constexpr,
    NOISE: tl.constexpr,
    BELOW_ONE: tl.constexpr,
    MIX: tl.constexpr,
    DIMS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * MIX + tl.arange(0, MIX)
    z = tl.arange(0, DIMS)
    valid = n < N
    mask = valid[:, None] & (z < Z)[None, :]
    at = n[:, None] * Z + z[None, :]
    noise = tl.load(normal + at, mask, 0)
    largest = tl.full([MIX], LOWEST, noise.dtype)
    total = tl.zeros([MIX], noise.dtype)
    for k in range(K):
        largest = tl.maximum(largest, tl.load(logits + n * K + k, valid, 0))
    for k in range(K):
        total += tl.exp((tl.load(logits + n * K + k, valid, 0) - largest) * SCALE)
    below_one = tl.full([MIX], BELOW_ONE, noise.dtype)  # bare, it would be rounded to float32, which is 1
    u = tl.load(uniform + n, valid, 0)
    threshold = tl.where(u > below_one, below_one, u) * total
    share = threshold / total
    nothing = share - share  # 0, or NaN where no component can be drawn
    cumulated = tl.zeros([MIX], noise.dtype)
    index = tl.zeros([MIX], tl.int64)
    for k in range(K - 1):
        cumulated += tl.exp((tl.load(logits + n * K + k, valid, 0) - largest) * SCALE)
        index += (cumulated <= threshold).to(tl.int64)
    chosen = at * K + index[:, None]
    std = tl.exp(tl.load(log_std + chosen, mask, 0)) * NOISE
    tl.store(sample + at, tl.load(mean + chosen, mask, 0) + nothing[:, None] + std * noise, mask)


def _tile(logits: Tensor, mean: Tensor) -> tuple[tuple[int, int, int], dict[str, int], int]:
    """(mixtures, dimensions of each, classes), the block's sizes, and the number of blocks."""
    Z = mean.shape[-2] if logits.dim() < mean.dim() else 1
    N, K = mean.numel() // (Z * mean.shape[-1]), mean.shape[-1]
    dims = triton.next_power_of_2(Z)
    mix = max(1, BLOCK // dims)
    return (N, Z, K), {"MIX": mix, "DIMS": dims}, triton.cdiv(N, mix)


@operator
def mdn_sample(
    logits: Tensor, mean: Tensor, log_std: Tensor, uniform: Tensor, normal: Tensor, temperature: float
) -> Tensor:
    sizes, block, blocks = _tile(logits, mean)
    args = [x.contiguous() for x in (logits, mean, log_std, uniform, normal)]
    sample = empty(normal)
    below_one = 1 - torch.finfo(mean.dtype).eps / 2
    if blocks:
        with torch.cuda.device_of(mean):
            _sample[(blocks,)](
                *args, sample, *sizes, SCALE=1 / temperature, NOISE=math.sqrt(temperature), BELOW_ONE=below_one, **block
            )
    return sample


@operator
def mdn_nll(logits: Tensor, mean: Tensor, log_std: Tensor, value: Tensor) -> Tensor:
    sizes, block, blocks = _tile(logits, mean)
    args = [x.contiguous() for x in (logits, mean, log_std, value)]
    nll = logits.new_empty(logits.shape[:-1])
    if blocks:
        with torch.cuda.device_of(mean):
            _forward[(blocks,)](*args, nll, *sizes, **block)
    return nll


@operator
def mdn_nll_backward(
    logits: Tensor, mean: Tensor, log_std: Tensor, grad: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes, block, blocks = _tile(logits, mean)
    args = [x.contiguous() for x in (grad, logits, mean, log_std, value)]
    d_logits, d_mean, d_log_std, d_value = map(empty, (logits, mean, log_std, value))
    if blocks:
        with torch.cuda.device_of(mean):
            _backward[(blocks,)](*args, d_logits, d_mean, d_log_std, d_value, *sizes, **block)
    return d_logits, d_mean, d_log_std, d_value
