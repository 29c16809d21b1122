"""The lambda-return and its backward: one program a block of columns, the running value in registers."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwm.triton._library import empty, operator

BLOCK = 128


@triton.jit  # LAM is a constant of the kernel because a float argument would arrive rounded to float32
def _forward(reward, cont, next_value, lam, ret, T, B, end, LAM: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < B
    dtype = ret.dtype.element_ty
    acc = tl.float64 if dtype == tl.float64 else tl.float32
    at = column + end  # row T - 1
    running = tl.load(next_value + at, mask).to(acc)  # R_{t+1}
    for _ in range(T):
        r = tl.load(reward + at, mask).to(acc)
        c = tl.load(cont + at, mask).to(acc)
        v = tl.load(next_value + at, mask).to(acc)
        if lam is None:
            running = r + c * ((1 - LAM) * v + LAM * running)
        else:
            l = tl.load(lam + at, mask).to(acc)
            running = r + c * ((1 - l) * v + l * running)
        tl.store(ret + at, running.to(dtype), mask)
        at -= B


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    cont,
    next_value,
    ret,
    lam,
    d_reward,
    d_cont,
    d_next_value,
    T,
    B,
    LAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < B
    dtype = grad.dtype.element_ty
    acc = tl.float64 if dtype == tl.float64 else tl.float32
    at = column
    carry = tl.zeros([BLOCK], acc)  # cont_{t-1} * lam_{t-1} * G_{t-1}
    for t in range(T):
        c = tl.load(cont + at, mask).to(acc)
        v = tl.load(next_value + at, mask).to(acc)
        l = tl.full([BLOCK], LAM, acc) if lam is None else tl.load(lam + at, mask).to(acc)
        if t < T - 1:
            next_ret = tl.load(ret + at + B, mask).to(acc)
            value_share = 1 - l
        else:  # R_T = next_value_{T-1}
            next_ret = v
            value_share = tl.full([BLOCK], 1, acc)
        g = tl.load(grad + at, mask).to(acc) + carry
        tl.store(d_reward + at, g.to(dtype), mask)
        tl.store(d_cont + at, (g * ((1 - l) * v + l * next_ret)).to(dtype), mask)
        tl.store(d_next_value + at, (g * c * value_share).to(dtype), mask)
        carry = g * c * l
        at += B


@operator
def lambda_return(reward: Tensor, cont: Tensor, next_value: Tensor, lam: Tensor | None, lam_value: float) -> Tensor:
    reward, cont, next_value = reward.contiguous(), cont.contiguous(), next_value.contiguous()
    lam = None if lam is None else lam.contiguous()
    ret = empty(reward)
    T, *columns = reward.shape
    B = math.prod(columns)
    with torch.cuda.device_of(reward):
        _forward[(triton.cdiv(B, BLOCK),)](
            reward, cont, next_value, lam, ret, T, B, (T - 1) * B, LAM=lam_value, BLOCK=BLOCK
        )
    return ret


@operator
def lambda_return_backward(
    grad: Tensor, cont: Tensor, next_value: Tensor, ret: Tensor, lam: Tensor | None, lam_value: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, cont, next_value, ret = (
        grad.contiguous(),
        cont.contiguous(),
        next_value.contiguous(),
        ret.contiguous(),
    )
    lam = None if lam is None else lam.contiguous()
    d_reward, d_cont, d_next_value = empty(grad), empty(grad), empty(grad)
    T, *columns = grad.shape
    B = math.prod(columns)
    with torch.cuda.device_of(grad):
        _backward[(triton.cdiv(B, BLOCK),)](
            grad, cont, next_value, ret, lam, d_reward, d_cont, d_next_value, T, B, LAM=lam_value, BLOCK=BLOCK
        )
    return d_reward, d_cont, d_next_value
