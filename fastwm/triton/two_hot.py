"""The two-hot categorical: one program a row, its bins in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator


@triton.jit
def _cross_entropy(x, k, mask, edges, target, logsumexp, bins):  # type: ignore[no-untyped-def]
    """The loss of one target, its two-hot encoding over all bins, and 0, or NaN where the target is."""
    edge = tl.load(edges + k, mask, float("inf"))
    # An edge above the target is not counted; a NaN counts all.
    count = tl.sum(tl.where(mask & ~(edge > target), 1, 0))
    inside = (count > 0) & (count < bins)
    below = tl.maximum(count - 1, 0)
    low = tl.load(edges + below)
    high = tl.load(edges + tl.minimum(count, bins - 1))
    weight = tl.where(inside, (target - low) / tl.where(inside, high - low, 1), 0)
    weight = tl.where(target != target, target, weight)
    hot = tl.where(k == below, 1 - weight, tl.where(inside & (k == count), weight, 0))
    return tl.sum(hot * tl.where(hot == 0, 0, logsumexp - x)), hot, 0 * weight


@triton.jit
def _loss(  # type: ignore[no-untyped-def]
    logits, edges, target, second, loss, logsumexps, bins, SHARE: tl.constexpr, BINS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BINS)
    mask = k < bins
    acc = loss.dtype.element_ty
    x = tl.load(logits + row * bins + k, mask, -float("inf")).to(acc)
    most = tl.max(x)
    logsumexp = most + tl.log(tl.sum(tl.exp(x - most)))
    total, _, undefined = _cross_entropy(x, k, mask, edges, tl.load(target + row), logsumexp, bins)
    if second is not None:
        more, _, also = _cross_entropy(x, k, mask, edges, tl.load(second + row), logsumexp, bins)
        total += SHARE * more
        undefined += also
    tl.store(loss + row, total)
    tl.store(logsumexps + row, logsumexp + undefined)  # and so the whole row's gradient


@triton.jit
def _loss_backward(  # type: ignore[no-untyped-def]
    grad, logits, edges, target, second, logsumexps, d_logits, bins, SHARE: tl.constexpr, BINS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BINS)
    mask = k < bins
    acc = grad.dtype.element_ty
    x = tl.load(logits + row * bins + k, mask, -float("inf")).to(acc)
    logsumexp = tl.load(logsumexps + row)
    _, hot, _ = _cross_entropy(x, k, mask, edges, tl.load(target + row), logsumexp, bins)
    d = tl.exp(x - logsumexp)
    if second is not None:
        _, more, _ = _cross_entropy(x, k, mask, edges, tl.load(second + row), logsumexp, bins)
        d = d * (1 + SHARE) - (hot + SHARE * more)
    else:
        d -= hot
    tl.store(d_logits + row * bins + k, (tl.load(grad + row) * d).to(d_logits.dtype.element_ty), mask)


@triton.jit
def _mean(logits, edges, means, logsumexps, bins, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    acc = means.dtype.element_ty
    half = bins // 2
    k = tl.arange(0, HALF) + 1
    mask = k <= half
    none = -float("inf")
    centre = tl.load(logits + row * bins + half).to(acc)
    low = tl.load(logits + row * bins + half - k, mask, none).to(acc)
    high = tl.load(logits + row * bins + half + k, mask, none).to(acc)
    most = tl.maximum(centre, tl.maximum(tl.max(low), tl.max(high)))
    centre, low, high = tl.exp(centre - most), tl.exp(low - most), tl.exp(high - most)
    edge_low, edge_high = tl.load(edges + half - k, mask, 0), tl.load(edges + half + k, mask, 0)
    total = tl.sum(low + high) + centre
    # As csrc/include/fastwm/two_hot.h: exactly zero for equal probabilities, also in fused multiply-adds.
    pairs = tl.sum((high - low) * edge_high + low * (edge_high + edge_low))
    tl.store(means + row, (pairs + centre * tl.load(edges + half)) / total)
    tl.store(logsumexps + row, most + tl.log(total))


@triton.jit
def _mean_backward(grad, logits, edges, means, logsumexps, d_logits, bins, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BINS)
    mask = k < bins
    x = tl.load(logits + row * bins + k, mask, -float("inf")).to(grad.dtype.element_ty)
    p = tl.exp(x - tl.load(logsumexps + row))
    d = tl.load(grad + row) * p * (tl.load(edges + k, mask, 0) - tl.load(means + row))
    tl.store(d_logits + row * bins + k, d.to(d_logits.dtype.element_ty), mask)


def _dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)


def _rows(logits: Tensor, like: Tensor) -> Tensor:
    return like.new_empty(logits.shape[:-1])


@operator
def two_hot_loss(
    logits: Tensor, target: Tensor, bins: Tensor, second_target: Tensor | None, second_weight: float
) -> tuple[Tensor, Tensor]:
    logits, target, bins = _dense(logits, target, bins)
    second_target = None if second_target is None else second_target.contiguous()
    loss, logsumexp = _rows(logits, bins), _rows(logits, bins)
    count = len(bins)
    if loss.numel():
        with torch.cuda.device_of(logits):
            _loss[(loss.numel(),)](
                logits, bins, target, second_target, loss, logsumexp, count,
                SHARE=second_weight, BINS=triton.next_power_of_2(count),
            )  # fmt: skip
    return loss, logsumexp


@operator
def two_hot_loss_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    bins: Tensor,
    second_target: Tensor | None,
    second_weight: float,
    logsumexp: Tensor,
) -> Tensor:
    grad, logits, target, bins, logsumexp = _dense(grad, logits, target, bins, logsumexp)
    second_target = None if second_target is None else second_target.contiguous()
    d_logits = empty(logits)
    count = len(bins)
    if grad.numel():
        with torch.cuda.device_of(logits):
            _loss_backward[(grad.numel(),)](
                grad, logits, bins, target, second_target, logsumexp, d_logits, count,
                SHARE=second_weight, BINS=triton.next_power_of_2(count),
            )  # fmt: skip
    return d_logits


@operator
def two_hot_mean(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    logits, bins = _dense(logits, bins)
    mean, logsumexp = _rows(logits, bins), _rows(logits, bins)
    count = len(bins)
    if mean.numel():
        with torch.cuda.device_of(logits):
            _mean[(mean.numel(),)](
                logits, bins, mean, logsumexp, count, HALF=triton.next_power_of_2(max(1, count // 2))
            )
    return mean, logsumexp


@operator
def two_hot_mean_backward(grad: Tensor, logits: Tensor, bins: Tensor, mean: Tensor, logsumexp: Tensor) -> Tensor:
    grad, logits, bins, mean, logsumexp = _dense(grad, logits, bins, mean, logsumexp)
    d_logits = empty(logits)
    count = len(bins)
    if grad.numel():
        with torch.cuda.device_of(logits):
            _mean_backward[(grad.numel(),)](
                grad, logits, bins, mean, logsumexp, d_logits, count, BINS=triton.next_power_of_2(count)
            )
    return d_logits
