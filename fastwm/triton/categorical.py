"""Categoricals over blocks of rows [BLOCK, C], C padded to a power of two. Nothing but inputs is read back."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

ELEMENTS = 2048  # of a block

# KEEP = 1 - unimix and FLOOR = unimix / C are constants of the kernels because float arguments would arrive rounded.


@triton.jit
def _tile(rows, C, BLOCK: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """This program's rows [BLOCK]; classes [1, PADDED]; offsets and mask [BLOCK, PADDED]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, PADDED)[None, :]
    return row, k, row[:, None] * C + k, (row < rows)[:, None] & (k < C)


@triton.jit
def _load(x, at, mask, like):  # type: ignore[no-untyped-def]
    """Zero where masked."""
    return tl.load(x + at, mask, 0).to(like.dtype)


@triton.jit
def _logits(x, at, mask, k, C, acc: tl.constexpr):  # type: ignore[no-untyped-def]
    """Classes beyond C are impossible, masked rows ordinary."""
    return tl.where(k < C, tl.load(x + at, mask, 0).to(acc), -float("inf"))


@triton.jit
def _mixed(x, valid, KEEP: tl.constexpr, FLOOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """q = softmax(x), p = (1 - unimix) q + unimix / C and ln p; all zero where not valid."""
    x = x - tl.max(x, 1)[:, None]
    e = tl.exp(x)
    z = tl.sum(e, 1)[:, None]
    q = e / z
    if FLOOR == 0:
        return q, q, tl.where(valid, x - tl.log(z), 0)
    p = KEEP * q + FLOOR
    return q, tl.where(valid, p, 0), tl.where(valid, tl.log(p), 0)


@triton.jit
def _weighted_log(p, log):  # type: ignore[no-untyped-def]
    """p ln(p), or p ln(p / r), where 0 ln 0 = 0."""
    return tl.where(p == 0, 0, p * log)


@triton.jit
def _last_drawable(p, k):  # type: ignore[no-untyped-def]
    """The last class of weight above 0, by the least normal number."""
    if p.dtype == tl.float64:
        least = tl.full(p.shape, 2.2250738585072014e-308, p.dtype)
    else:
        least = tl.full(p.shape, 1.17549435e-38, p.dtype)
    return tl.max(tl.where(p >= least, k, 0), 1)


@triton.jit
def _kept_share(q, p, KEEP: tl.constexpr, FLOOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """(1 - unimix) q / p; 1 without a mixture, even where q has underflowed."""
    if FLOOR == 0:
        return tl.full(q.shape, 1, q.dtype)
    return KEEP * q / (KEEP * q + FLOOR)


@triton.jit
def _d_logits(w, q):  # type: ignore[no-untyped-def]
    return w - q * tl.sum(w, 1)[:, None]


@triton.jit
def _gumbel(u):  # type: ignore[no-untyped-def]
    # As tensors: bare, the ends would be rounded to float32, in which they are 0 and 1.
    if u.dtype == tl.float64:
        lowest = tl.full(u.shape, 2.2250738585072014e-308, u.dtype)
        highest = tl.full(u.shape, 0.99999999999999989, u.dtype)
    else:
        lowest = tl.full(u.shape, 1.17549435e-38, u.dtype)
        highest = tl.full(u.shape, 0.99999994, u.dtype)
    u = tl.where(u < lowest, lowest, tl.where(u > highest, highest, u))
    return -tl.log(-tl.log(u))


@triton.jit
def _sample(  # type: ignore[no-untyped-def]
    logits, uniform, sample, index, log_prob, rows, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, GUMBEL: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    acc: tl.constexpr = sample.dtype.element_ty
    row, k, at, mask = _tile(rows, C, BLOCK, PADDED)
    x = _logits(logits, at, mask, k, C, acc)
    _, p, log_p = _mixed(x, k < C, KEEP, FLOOR)
    tl.store(log_prob + at, log_p, mask)
    if GUMBEL:
        draws = tl.load(uniform + at, mask, 0.5)
        u = tl.sum(draws, 1)
        y = tl.where(k < C, log_p + _gumbel(draws), -1e30)
        chosen = tl.argmax(y, 1)  # the first of equals
    else:
        u = tl.load(uniform + row, row < rows, 0)
        largest = tl.max(x, 1)
        z = tl.sum(tl.exp(x - largest[:, None]), 1)
        cdf = tl.zeros([BLOCK], acc)
        chosen = tl.zeros([BLOCK], tl.int32)
        for j in range(C - 1):  # in class order, as every backend sums it
            q_j = tl.exp(tl.load(logits + row * C + j, row < rows, 0).to(acc) - largest) / z
            cdf += KEEP * q_j + FLOOR
            chosen += (cdf <= u).to(tl.int32)
        chosen = tl.where(chosen == C - 1, _last_drawable(p, k), chosen)
    nothing = tl.sum(p, 1) + u
    nothing = nothing - nothing  # 0, or NaN where logits or noise are
    chosen = tl.where(nothing == 0, chosen, 0)
    tl.store(index + row, chosen.to(tl.int64), row < rows)
    tl.store(sample + at, (k == chosen[:, None]).to(acc) + nothing[:, None], mask)


@triton.jit
def _sample_backward(  # type: ignore[no-untyped-def]
    d_sample, d_log_prob, logits, uniform, d_logits, rows, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    dtype = d_logits.dtype.element_ty
    acc: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    _, k, at, mask = _tile(rows, C, BLOCK, PADDED)
    q, p, log_p = _mixed(_logits(logits, at, mask, k, C, acc), k < C, KEEP, FLOOR)
    w = tl.zeros(q.shape, acc)
    if d_sample is not None:
        d = _load(d_sample, at, mask, q)
        if uniform is None:
            w += KEEP * q * d
        else:
            y = tl.where(k < C, log_p + _gumbel(tl.load(uniform + at, mask, 0.5)), -1e30)
            e = tl.exp(y - tl.max(y, 1)[:, None])
            soft = e / tl.sum(e, 1)[:, None]
            w += _kept_share(q, p, KEEP, FLOOR) * soft * (d - tl.sum(soft * d, 1)[:, None])
    if d_log_prob is not None:
        w += _kept_share(q, p, KEEP, FLOOR) * _load(d_log_prob, at, mask, q)
    tl.store(d_logits + at, _d_logits(w, q).to(dtype), mask)


@triton.jit
def _kl(  # type: ignore[no-untyped-def]
    post, prior, dyn, rep, S, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, FREE: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    acc: tl.constexpr = dyn.dtype.element_ty
    k = tl.arange(0, PADDED)[None, :]
    total = tl.zeros([BLOCK], acc)
    for first in range(0, S, BLOCK):
        s = first + tl.arange(0, BLOCK)[:, None]
        at, mask = (n * S + s) * C + k, (s < S) & (k < C)
        _, p, log_p = _mixed(_logits(post, at, mask, k, C, acc), mask, KEEP, FLOOR)
        _, _, log_r = _mixed(_logits(prior, at, mask, k, C, acc), mask, KEEP, FLOOR)
        total += tl.sum(_weighted_log(p, log_p - log_r), 1)
    kl = tl.sum(total, 0)
    kl = tl.where(kl <= FREE, FREE, kl).to(acc)
    tl.store(dyn + n, kl)
    tl.store(rep + n, kl)


@triton.jit
def _kl_backward(  # type: ignore[no-untyped-def]
    d_dyn, d_rep, post, prior, dyn, d_post, d_prior, S, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, FREE: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    dtype = d_post.dtype.element_ty
    acc: tl.constexpr = dyn.dtype.element_ty
    k = tl.arange(0, PADDED)[None, :]
    free = tl.load(dyn + n) <= FREE
    for first in range(0, S, BLOCK):
        s = first + tl.arange(0, BLOCK)[:, None]
        at, mask = (n * S + s) * C + k, (s < S) & (k < C)
        w_post, w_prior = tl.zeros([BLOCK, PADDED], acc), tl.zeros([BLOCK, PADDED], acc)
        if not free:
            q, p, log_p = _mixed(_logits(post, at, mask, k, C, acc), mask, KEEP, FLOOR)
            q_prior, r, log_r = _mixed(_logits(prior, at, mask, k, C, acc), mask, KEEP, FLOOR)
            if d_rep is not None:
                w_post = _d_logits(tl.load(d_rep + n) * KEEP * _weighted_log(q, log_p - log_r), q)
            if d_dyn is not None:
                w_prior = _d_logits(-tl.load(d_dyn + n) * p * _kept_share(q_prior, r, KEEP, FLOOR), q_prior)
        tl.store(d_post + at, w_post.to(dtype), mask)
        tl.store(d_prior + at, w_prior.to(dtype), mask)


@triton.jit
def _entropy(  # type: ignore[no-untyped-def]
    logits, entropy, rows, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row, k, at, mask = _tile(rows, C, BLOCK, PADDED)
    _, p, log_p = _mixed(_logits(logits, at, mask, k, C, entropy.dtype.element_ty), k < C, KEEP, FLOOR)
    tl.store(entropy + row, -tl.sum(_weighted_log(p, log_p), 1), row < rows)


@triton.jit
def _entropy_backward(  # type: ignore[no-untyped-def]
    grad, logits, d_logits, rows, C,
    KEEP: tl.constexpr, FLOOR: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row, k, at, mask = _tile(rows, C, BLOCK, PADDED)
    acc: tl.constexpr = grad.dtype.element_ty
    q, _, log_p = _mixed(_logits(logits, at, mask, k, C, acc), k < C, KEEP, FLOOR)
    g = tl.load(grad + row, row < rows, 0)[:, None]
    tl.store(d_logits + at, _d_logits(-g * KEEP * _weighted_log(q, log_p), q).to(d_logits.dtype.element_ty), mask)


def _computed(logits: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return logits.new_empty(shape, dtype=dtype or (torch.float64 if logits.dtype == torch.float64 else torch.float32))


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _constants(classes: int, unimix: float, most_rows: int | None = None) -> dict[str, float]:
    padded = triton.next_power_of_2(classes)
    block = max(1, ELEMENTS // padded)
    if most_rows is not None:
        block = min(block, triton.next_power_of_2(most_rows))
    return {"KEEP": 1 - unimix, "FLOOR": unimix / classes, "BLOCK": block, "PADDED": padded}


def _grid(rows: int, constants: dict[str, float]) -> tuple[int]:
    return (triton.cdiv(rows, constants["BLOCK"]),)


@operator
def straight_through_categorical(
    logits: Tensor, uniform: Tensor, unimix: float, gumbel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    logits, uniform = logits.contiguous(), uniform.contiguous()
    classes = logits.shape[-1]
    rows = logits.numel() // classes
    sample, log_prob = _computed(logits, *logits.shape), _computed(logits, *logits.shape)
    index = _computed(logits, *logits.shape[:-1], dtype=torch.int64)
    constants = _constants(classes, unimix)
    if rows:
        with torch.cuda.device_of(logits):
            _sample[_grid(rows, constants)](
                logits, uniform, sample, index, log_prob, rows, classes, GUMBEL=gumbel, **constants
            )
    return sample, index, log_prob


@operator
def straight_through_categorical_backward(
    d_sample: Tensor | None, d_log_prob: Tensor | None, logits: Tensor, uniform: Tensor | None, unimix: float
) -> Tensor:
    logits = logits.contiguous()
    d_sample, d_log_prob, uniform = _contiguous(d_sample, d_log_prob, uniform)
    d_logits = empty(logits)
    classes = logits.shape[-1]
    rows = logits.numel() // classes
    constants = _constants(classes, unimix)
    if rows:
        with torch.cuda.device_of(logits):
            _sample_backward[_grid(rows, constants)](
                d_sample, d_log_prob, logits, uniform, d_logits, rows, classes, **constants
            )
    return d_logits


@operator
def categorical_kl(post_logits: Tensor, prior_logits: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor]:
    post_logits, prior_logits = post_logits.contiguous(), prior_logits.contiguous()
    *batch, groups, classes = post_logits.shape
    dyn, rep = _computed(post_logits, *batch), _computed(post_logits, *batch)
    if dyn.numel():
        with torch.cuda.device_of(dyn):
            _kl[(dyn.numel(),)](
                post_logits, prior_logits, dyn, rep, groups, classes,
                FREE=free_nats, **_constants(classes, unimix, groups),
            )  # fmt: skip
    return dyn, rep


@operator
def categorical_kl_backward(
    d_dyn: Tensor | None, d_rep: Tensor | None, post_logits: Tensor, prior_logits: Tensor, dyn: Tensor,
    unimix: float, free_nats: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    post_logits, prior_logits, dyn = post_logits.contiguous(), prior_logits.contiguous(), dyn.contiguous()
    d_dyn, d_rep = _contiguous(d_dyn, d_rep)
    d_post, d_prior = empty(post_logits), empty(post_logits)
    groups, classes = post_logits.shape[-2:]
    if dyn.numel():
        with torch.cuda.device_of(dyn):
            _kl_backward[(dyn.numel(),)](
                d_dyn, d_rep, post_logits, prior_logits, dyn, d_post, d_prior, groups, classes,
                FREE=free_nats, **_constants(classes, unimix, groups),
            )  # fmt: skip
    return d_post, d_prior


@operator
def categorical_entropy(logits: Tensor, unimix: float) -> Tensor:
    logits = logits.contiguous()
    entropy = _computed(logits, *logits.shape[:-1])
    constants = _constants(logits.shape[-1], unimix)
    if entropy.numel():
        with torch.cuda.device_of(logits):
            _entropy[_grid(entropy.numel(), constants)](logits, entropy, entropy.numel(), logits.shape[-1], **constants)
    return entropy


@operator
def categorical_entropy_backward(grad: Tensor, logits: Tensor, unimix: float) -> Tensor:
    grad, logits = grad.contiguous(), logits.contiguous()
    d_logits = empty(logits)
    constants = _constants(logits.shape[-1], unimix)
    if grad.numel():
        with torch.cuda.device_of(logits):
            _entropy_backward[_grid(grad.numel(), constants)](
                grad, logits, d_logits, grad.numel(), logits.shape[-1], **constants
            )
    return d_logits
