"""PlaNet's planner and the dreams of V1 and V2 against the eager loop, `ref`, at the sizes of the papers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from bench.conftest import DEVICE, Measure
from fastwm.nn import DREAMER_V2, Dense
from fastwm.nn.gru_rssm import GRURSSM
from fastwm.ops import LinearWeights, PolicyHead, gru_rssm_imagine, gru_rssm_open_loop

VARIANTS = ["fastwm", "eager", "fastwm bf16", "eager bf16"]
DREAMS = {  # system, rows, deter, hidden, stoch, head
    "v1": ("dreamer_v1", 2500, 200, 200, 30, PolicyHead(6, 0, "tanh_normal", 1e-4)),
    "v2 dmc": ("dreamer_v2", 800, 200, 200, 32, PolicyHead(6, 0, "trunc_normal")),
    "v2 atari": ("dreamer_v2", 800, 600, 600, 32, PolicyHead(1, 18, "onehot")),
}


def cost(rssm: GRURSSM, action: int) -> int:
    """Multiplications of one row's step; one-hot latents are gathered."""
    D, U = rssm.deter, rssm.prior.linear.out_features
    return (action + rssm.stoch) * U + 3 * D * (U + D) + D * U + U * rssm.prior_stats.out_features


def run(measure: Measure, fn: Callable[[], list[Tensor]], name: str, group: str, bytes_moved: int, flops: int) -> None:
    def call() -> list[Tensor]:
        backend = fastwm.backend("cpu" if name.startswith("fastwm") else "ref")
        with torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name), backend:
            return fn()

    measure(call, group=group, variant=name, bytes_moved=bytes_moved, flops=flops)


@pytest.mark.parametrize("name", VARIANTS)
def test_planner(measure: Measure, name: str) -> None:
    """One of the 10 iterations of a decision: 1000 candidates, 12 steps."""
    H, N, A = 12, 1000, 6
    rssm = GRURSSM("planet", 8, A, 200, 200, 30)
    start, action, noise = rssm.initial(N), torch.randn(H, N, A).tanh(), torch.randn(H, N, 30)

    @torch.no_grad()
    def fn() -> list[Tensor]:
        return list(gru_rssm_open_loop(*start, noise, action, rssm.weights, rssm.kind))

    with fastwm.backend("ref"):
        exact = fn()
    assert_close(fn(), exact, atol=1e-4, rtol=1e-4)
    numbers = rssm.deter + 3 * 30 + 30 + A
    run(measure, fn, name, "planner", 4 * H * N * numbers, 2 * H * N * cost(rssm, A))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dream", DREAMS)
def test_dream(measure: Measure, dream: str, name: str) -> None:
    """Forward and backward, 15 steps, an actor of four layers of 400."""
    system, N, deter, hidden, stoch, head = DREAMS[dream]
    H, A, V = 15, head.size * (head.classes or 1), 400
    rssm = GRURSSM(system, 8, A, deter, hidden, stoch)
    layers = [Dense(i, V, style=DREAMER_V2) for i in (rssm.feat_dim, V, V, V)]
    out = torch.nn.Linear(V, head.size * (head.classes or 2))
    params = [p for module in (*layers, out) for p in module.parameters()]
    start, noise = rssm.initial(N), rssm.noise(H, N)
    action_noise = (torch.randn if head.dist == "tanh_normal" else torch.rand)(H, N, head.size)

    def fn() -> list[Tensor]:
        actor = tuple(layer.params for layer in layers), LinearWeights(out.weight, out.bias), (head,)
        deters, stochs, _, actions = gru_rssm_imagine(*start, noise, action_noise, rssm.weights, rssm.kind, *actor)
        return [actions, *torch.autograd.grad(deters.sum() + stochs.flatten(2)[..., ::2].sum(), params)]

    with fastwm.backend("ref"):
        exact = fn()
    assert_close(fn()[0][0], exact[0][0], atol=1e-4, rtol=1e-4)  # a flipped sample parts two trajectories
    model, actor = cost(rssm, A), (deter + stoch) * V + 3 * V * V + V * out.out_features
    flops = 2 * H * N * (2 * model + 3 * actor)
    kept = 2 * (deter + 2 * hidden + 4 * deter + 4 * V)
    run(measure, fn, name, dream, 4 * H * N * kept, flops)
