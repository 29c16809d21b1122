"""A class of weight 0 is never drawn, in every place that samples by the inverse CDF, by any uniform number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm import ops
from fastwm.nn import DREAMER_V2, BlockRSSM, Dense
from fastwm.nn.distributions import Categorical
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
from fastwm.ops import ActionHead, LinearWeights, MDNRNNWeights, MLPWeights, PolicyHead
from tests.backends import Target, needs_kernel

S, C = 60, 64
MASKS = [-1e9, -200.0, -float("inf")]
UNIFORMS = [0.0, 0.25, 1 - 2**-24]


def constant(logits: Tensor, inputs: int) -> LinearWeights:
    """A layer that answers these numbers whatever it reads."""
    return LinearWeights(torch.zeros(logits.numel(), inputs, device=logits.device), logits.flatten())


def hidden(inputs: int, like: Tensor) -> ops.DenseWeights:
    ones = torch.ones(6, device=like.device)
    return ops.DenseWeights(torch.ones(6, inputs, device=like.device), ones, ones)


def model(logits: Tensor) -> tuple[BlockRSSM, tuple[Tensor, Tensor]]:
    """DreamerV3's, and a start state of one row."""
    rssm = BlockRSSM(7, 3, 8, 6, *logits.shape, 2).to(logits.device)
    return rssm, (torch.ones(1, 8).to(logits), torch.zeros(1, *logits.shape).to(logits))


def from_categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    sample, index, _ = ops.straight_through_categorical(logits, uniform, 0.0)
    assert torch.equal(sample.argmax(-1), index)
    return sample


def from_distribution(logits: Tensor, uniform: Tensor) -> Tensor:
    return Categorical(logits).onehot(uniform)


def from_rssm_observe(logits: Tensor, uniform: Tensor) -> Tensor:
    rssm, start = model(logits)
    weights = rssm.observe_weights()._replace(logits=constant(logits, 6))
    first = torch.zeros(1, 1, dtype=torch.bool, device=logits.device)
    tokens, action = logits.new_ones(1, 1, 7), logits.new_ones(1, 1, 3)
    _, sample, index, _ = ops.rssm_observe(tokens, action, first, *start, uniform[None, None], weights, 0.0)
    assert torch.equal(sample.argmax(-1), index)
    return sample[0, 0]


def from_rssm_imagine(logits: Tensor, uniform: Tensor) -> Tensor:
    rssm, start = model(logits)
    prior = MLPWeights((hidden(8, logits),), constant(logits, 6))
    action = logits.new_ones(1, 1, 3)
    return ops.rssm_open_loop(*start, uniform[None, None], action, rssm.observe_weights(), prior, 0.0)[1][0, 0]


def from_policy(logits: Tensor, uniform: Tensor) -> Tensor:
    rssm = BlockRSSM(7, logits.numel(), 8, 6, 2, 3, 2).to(logits.device)
    start = logits.new_ones(1, 8), logits.new_ones(1, 2, 3)
    actor = MLPWeights((hidden(14, logits),), constant(logits, 6))
    weights = rssm.observe_weights(), rssm.prior_weights(), actor, (ActionHead(*logits.shape),)
    noise = uniform.expand(2, 1, -1).contiguous()
    return ops.rssm_imagine(*start, logits.new_ones(1, 1, 2), noise, *weights, 0.0)[3][0, 0].view(logits.shape)


def older_model(logits: Tensor, action: int = 3) -> tuple[GRURSSM, tuple[Tensor, Tensor]]:
    kind = VARIANTS["dreamer_v2"]._replace(classes=logits.shape[-1])
    rssm = GRURSSM(kind, 7, action, 8, 6, len(logits)).to(logits.device)
    return rssm, (torch.ones(1, 8).to(logits), torch.zeros(1, *logits.shape).to(logits))


def from_gru_rssm_observe(logits: Tensor, uniform: Tensor) -> Tensor:
    rssm, start = older_model(logits)
    weights = rssm.weights._replace(post_stats=constant(logits, 6))
    first = torch.zeros(1, 1, dtype=torch.bool, device=logits.device)
    data = logits.new_ones(1, 1, 7), logits.new_ones(1, 1, 3), first, *start, uniform[None, None]
    return ops.gru_rssm_observe(*data, weights, rssm.kind)[1][0, 0]


def from_gru_rssm_open_loop(logits: Tensor, uniform: Tensor) -> Tensor:
    rssm, start = older_model(logits)
    weights = rssm.weights._replace(prior_stats=constant(logits, 6))
    action = logits.new_ones(1, 1, 3)
    return ops.gru_rssm_open_loop(*start, uniform[None, None], action, weights, rssm.kind)[1][0, 0]


def from_gru_rssm_imagine(logits: Tensor, uniform: Tensor) -> Tensor:
    small = logits.new_zeros(2, 3)
    rssm, start = older_model(small, logits.numel())
    actor = Dense(rssm.feat_dim, 6, style=DREAMER_V2).to(logits.device).params
    head = PolicyHead(*logits.shape, "onehot")
    args = *start, logits.new_ones(1, 1, 2), uniform[None, None], rssm.weights, rssm.kind
    return ops.gru_rssm_imagine(*args, (actor,), constant(logits, 6), (head,))[3][0, 0].view(logits.shape)


def from_mdn_sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """The mean of component k is k."""
    means = torch.arange(logits.shape[-1], device=logits.device).to(logits).expand_as(logits).contiguous()
    k = ops.mdn_sample(logits, means, torch.zeros_like(means), 1.0, uniform, torch.zeros_like(uniform))
    return torch.nn.functional.one_hot(k.long(), logits.shape[-1])


SAMPLERS = [
    pytest.param(sampler, marks=needs_kernel(kernel))
    for sampler, kernel in {
        from_categorical: "straight_through_categorical", from_distribution: "rssm_imagine",
        from_rssm_observe: "rssm_observe", from_rssm_imagine: "rssm_imagine", from_policy: "rssm_imagine",
        from_gru_rssm_observe: "gru_rssm_observe", from_gru_rssm_open_loop: "gru_rssm_imagine",
        from_gru_rssm_imagine: "gru_rssm_imagine", from_mdn_sample: "mdn_sample",
    }.items()
]  # fmt: skip
Sampler = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def check(sampler: Sampler, device: str = "cpu") -> None:
    possible = torch.arange(C) < 2 + torch.arange(S)[:, None]  # 2 to 61 classes, all of one weight
    for mask in MASKS:
        logits = torch.zeros(S, C).masked_fill(~possible, mask).to(device)
        for uniform in UNIFORMS:
            drawn = sampler(logits, torch.full((S,), uniform, device=device)).cpu()
            assert ((drawn == 1).sum(-1) == 1).all() and (drawn != 0).sum() == S
            assert not drawn[~possible].any(), (mask, uniform)
            only = torch.full((S, C), mask, device=device)
            only[:, :S].fill_diagonal_(0)
            assert sampler(only, torch.full((S,), uniform, device=device)).argmax(-1).tolist() == list(range(S))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_impossible_classes_are_never_drawn(on: Target, sampler: Sampler) -> None:
    check(sampler, on.device)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_impossible_classes_at_every_instruction_set(isa: str, sampler: Sampler) -> None:
    check(sampler)


@needs_kernel("mdn_rnn_imagine")
def test_a_dream_draws_the_only_possible_component(on: Target) -> None:
    """Its means are far apart, its deviations nothing."""
    Z, K, H = 3, 5, 4
    numbers = torch.zeros(Z, 3, K, device=on.device)
    numbers[:, 0] = -float("inf")
    numbers[:, 0].fill_diagonal_(0)
    numbers[:, 1] = torch.arange(K, device=on.device)
    numbers[:, 2] = -80
    zeros = [torch.zeros(shape, device=on.device) for shape in ((4 * H, Z + 1), (4 * H, H), (4 * H,), (3 * Z * K, H))]
    weights = MDNRNNWeights(*zeros, numbers.flatten())
    z, controllers = torch.zeros(7, Z, device=on.device), torch.zeros(1, 1, Z, device=on.device)
    streams = torch.stack([torch.arange(7), torch.zeros(7, dtype=torch.int64)], -1).to(on.device)
    dream = ops.mdn_rnn_imagine(z, controllers, None, weights, streams, 3, trajectories=True)
    assert dream.z is not None
    assert_close(dream.z, torch.arange(Z, device=on.device).to(z).expand(3, 7, Z))
