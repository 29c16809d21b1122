"""The LaProp step against torch._foreach and a loop over tensors as the peers write it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm.ops import laprop_step_
from fastwm.ops.laprop import _foreach

# Parameters in all, about DreamerV3's size1m and size12m, in 75 equal matrices and 75 vectors.
SIZES = [1_000_000, 10_000_000]
SETTINGS = (1000, 4e-5, (0.9, 0.999), 1e-20, 0.3, 1e-3, 1000)  # step, lr, betas, eps, agc, pmin, warmup
State = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def state(total: int) -> State:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    matrices = [int(total * 0.98) // 75] * 75
    vectors = [int(total * 0.02) // 75] * 75
    sizes = [size for pair in zip(matrices, vectors) for size in pair]
    params, grads = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    return params, grads, [torch.rand(size, generator=generator) for size in sizes], [0.1 * g for g in grads]


def loop(
    params: list[Tensor],
    grads: list[Tensor],
    nu: list[Tensor],
    mu: list[Tensor],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    agc: float,
    pmin: float,
    warmup: int,
) -> None:
    """Clip and update tensor by tensor, each operation on its own."""
    lr = lr * min(1.0, step / warmup)
    beta1, beta2 = betas
    for p, g, n, m in zip(params, grads, nu, mu):
        limit = agc * p.norm().clamp(min=pmin)
        g = g * torch.clamp(limit / (g.norm() + 1e-6), max=1)
        n.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (n / (1 - beta2 ** (step + 1))).sqrt().add_(eps)
        m.mul_(beta1).add_(g / denominator, alpha=1 - beta1)
        p.add_(m / (1 - beta1 ** (step + 1)), alpha=-lr)


VARIANTS: dict[str, Callable[..., None]] = {"fastwm": laprop_step_, "torch._foreach": _foreach, "eager loop": loop}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("total", SIZES)
@torch.no_grad()
def test_laprop(measure: Measure, total: int, name: str) -> None:
    ours, theirs = state(total), state(total)
    VARIANTS[name](*ours, *SETTINGS)
    loop(*theirs, *SETTINGS)
    for mine, other in zip(ours, theirs):
        assert_close(mine, other, atol=1e-6, rtol=1e-4)
    arrays = 7 + 2  # param, nu, mu read and written, grad read; param and grad read before that, for the norms
    nbytes = sum(p.nbytes for p in ours[0])
    run = VARIANTS[name]
    measure(lambda: run(*ours, *SETTINGS), group=f"{total} parameters", variant=name, bytes_moved=arrays * nbytes)
