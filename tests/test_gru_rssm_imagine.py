"""Imagination and open loops of PlaNet, V1 and V2: what is constant, extreme policies, bfloat16, the modules.

See test_contract.py for the rest.
"""

from collections import defaultdict
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from fastwm.nn import RSSM, BlockRSSM
from fastwm.nn.gru_rssm import VARIANTS
from fastwm.ops import PolicyHead, gru_rssm_imagine
from tests.backends import Target, needs_cpu, needs_kernel
from tests.cases import CASES
from tests.cases.case import convert
from tests.cases.run import exact, reference, run, tensors

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("gru_rssm_imagine")]


def test_the_model_is_constant_and_the_actors_input_is_cut(on: Target) -> None:
    case = CASES["gru_rssm_imagine-v1"]
    everything = pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), case.args(dict(H=3, N=4)))
    start, noise, actor = everything[:2], everything[2:4], tensors(everything[6:8])
    outputs = gru_rssm_imagine(*everything)
    fixed = [*start, *tensors(everything[4])]
    assert all(g is None for g in torch.autograd.grad(outputs[0].sum(), fixed, allow_unused=True, retain_graph=True))
    # The first action reaches the first state, and is reached by no gradient of its input.
    one = gru_rssm_imagine(*start, *(x[:1] for x in noise), *everything[4:])
    assert all(g is not None for g in torch.autograd.grad(one[0].sum(), actor, allow_unused=True))


@needs_cpu
def test_extreme_policies_stay_finite_and_exact() -> None:
    """Saturated means and tiny deviations: the tails of the Normal, both ends of the uniform, in float32 too."""
    heads = (PolicyHead(4, 0, "trunc_normal", 1e-3), PolicyHead(2, 0, "tanh_normal", 1e-3))
    case = CASES["gru_rssm_imagine-v2"]
    sizes = dict(H=2, N=64, heads=heads)
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        *start, noise, w, kind, actor, out, _ = case.args(sizes, dtype)
        bias = torch.tensor([9.0, -9, 0.1, 2, -40, -40, -9, 5, 30, -30, 40, -40], dtype=dtype, requires_grad=True)
        noise[..., :4] = noise[..., :4].pow(4)
        noise[0, :8, :4] = 0.0
        noise[0, 8:16, :4] = 1 - 2**-24
        args = *start, noise, w, kind, actor, out._replace(bias=bias), heads
        ours = run(case, args)
        assert all(x.isfinite().all() for x in ours.values())
        assert_close(ours["output 3"][0].double(), exact(case, args)["output 3"][0], atol=tolerance, rtol=tolerance)


@needs_cpu
@pytest.mark.parametrize("name", ["planet", "v1", "v2"])
@pytest.mark.parametrize("N", [1, 16, 150])
def test_bfloat16_error_is_within_one_and_a_half_times_pytorchs(name: str, N: int) -> None:
    """Both against float64; the median of seven draws, since a policy's tails make single ones large.

    One step, so that no flipped sample parts the trajectories.
    """
    case = replace(CASES[f"gru_rssm_imagine-{name}"], operator=deter_of_imagine)
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(7):
        args = case.args(dict(H=1, N=N, D=96, U=40, S=5, units=(64, 64), heads="tanh_normal"), torch.float32, seed)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = run(case, args), reference(case, args)
        for key, truth in exact(case, args).items():
            assert ours[key].dtype == torch.float32
            error, allowed = ((x[key].double() - truth).norm() + 1e-6 for x in (ours, theirs))
            ratios[key].append(float(error / allowed))
            assert key.startswith("gradient") or key == "output 1" or error <= 0.05 * truth.norm(), key
    assert all(median(found) <= 1.5 for found in ratios.values()), ratios


def deter_of_imagine(*args: Any) -> list[Tensor]:
    """Of which the gradient is taken; the other outputs without it."""
    deter, *others = gru_rssm_imagine(*args)
    return [deter, *(x.detach() for x in others)]


def test_the_open_loop_of_the_module(on: Target) -> None:
    deter, stoch, noise, action, *_ = convert(CASES["gru_rssm_open_loop-v2"].args(), torch.float32)
    rssm = RSSM("dreamer_v2", 2, 3, 6, 5, 3, classes=3)
    with torch.no_grad():
        states, stats = rssm.open_loop(rssm.initial(7)._replace(deter=deter, stoch=stoch), action, noise)
        start = rssm.initial(7)._replace(deter=states.deter[0], stoch=states.stoch[0])
        last, _ = rssm.open_loop(start, action[1:], noise[1:])
    assert_close(states.deter[1:], last.deter)
    assert_close(stats, rssm.prior_stats_of(states.deter), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [*VARIANTS, "dreamer_v3"])
def test_one_name_owns_the_parameters_of_every_variant(variant: str) -> None:
    classes = {} if variant in VARIANTS and VARIANTS[variant].classes == 0 else {"classes": 4}
    blocks = {"blocks": 2} if variant == "dreamer_v3" else {}
    rssm = RSSM(variant, tokens=5, action=2, deter=6, hidden=8, stoch=3, **classes, **blocks)
    assert isinstance(rssm, BlockRSSM) == (variant == "dreamer_v3")
    first = torch.zeros(4, 2, dtype=torch.bool)
    states, _ = rssm.observe(rssm.initial(2), torch.randn(4, 2, 2), torch.randn(4, 2, 5), first)
    start = type(states)(states.deter[-1], states.stoch[-1])
    dreamt, _ = rssm.open_loop(start, torch.randn(7, 2, 2))
    latent = (3, 4) if classes else (3,)
    assert dreamt.deter.shape == (7, 2, 6) and dreamt.stoch.shape == (7, 2, *latent)
    sum(x.sum() for x in (*states, *dreamt)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in rssm.parameters())
    names = dict(rssm.named_parameters())
    assert ("input.norm.weight" in names) == (variant == "dreamer_v3_2023")
    assert ("input.linear.bias" in names) == (variant in ("planet", "dreamer_v1", "dreamer_v2"))
    with pytest.raises(ValueError, match="unknown variant 'rssm'; there are planet"):
        RSSM("rssm", 5, 2, 6, 8, 3)
