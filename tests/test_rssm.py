"""The recurrent state-space model: values by hand, and traps (docs/traps.md)."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import fastwm
from fastwm import _lib, ops
from fastwm.nn import (
    MLP,
    RSSM,
    Actor,
    BlockGRUCell,
    BlockLinear,
    BlockRSSM,
    Decoder,
    Linear,
    RMSNorm,
    State,
    TwoHotHead,
)
from fastwm.nn.spaces import as_dict


def constant_gates(core: BlockGRUCell, reset: float, cand: float, update: float) -> None:
    """Make the pre-activations of all gates constants."""
    core.gates.weight.data.zero_()
    core.gates.bias.data.view(core.blocks, 3, -1).copy_(torch.tensor([reset, cand, update])[:, None])


def make_core(deter: int = 4, blocks: int = 2) -> BlockGRUCell:
    torch.manual_seed(0)
    return BlockGRUCell((3, 2), deter, embed_size=5, blocks=blocks)


def step(core: BlockGRUCell, deter: torch.Tensor) -> torch.Tensor:
    return core((torch.zeros(len(deter), 3), torch.zeros(len(deter), 2)), deter)


def test_gates() -> None:
    """Gate order, Three GRUs.

    Reset, cand, update; update writes; bias -1; reset scales the candidate's pre-activation.
    """
    core = make_core()
    constant_gates(core, 0.5, 1.0, 0.3)
    torch.testing.assert_close(step(core, torch.full((1, 4), 0.2)), torch.full((1, 4), 0.31707597))
    constant_gates(core, 0.0, 0.0, 0.0)
    torch.testing.assert_close(step(core, torch.ones(1, 4)), torch.full((1, 4), 0.73105858))


def test_gates_split_within_each_block() -> None:
    """Block split: of 2 blocks and deter 4, flat outputs 0, 1, 6, 7 are reset, 2, 3, 8, 9 cand, 4, 5, 10, 11 update."""
    core = make_core()
    parts = {0: "reset", 1: "reset", 2: "cand", 3: "cand", 4: "update", 5: "update"}
    for flat in range(12):
        constant_gates(core, 0.5, 1.0, 0.3)
        base = step(core, torch.full((1, 4), 0.2))
        core.gates.bias.data[flat] += 1.0
        moved = (step(core, torch.full((1, 4), 0.2)) - base)[0]
        unit = (flat // 6) * 2 + flat % 2
        changed = torch.zeros(4, dtype=torch.bool)
        changed[unit] = True
        assert torch.equal(moved.abs() > 1e-6, changed), parts[flat % 6]
        reset, cand, update = (
            v + (name == parts[flat % 6]) for v, name in zip((0.5, 1, 0.3), ("reset", "cand", "update"))
        )
        u, c = 1 / (1 + torch.tensor(1 - update).exp()), torch.tanh(torch.tensor(reset).sigmoid() * cand)
        assert (base[0, unit] + moved[unit]).item() == pytest.approx((u * c + (1 - u) * 0.2).item(), rel=1e-5)


def test_norm_spans_the_whole_deter() -> None:
    """Norm over the carry: one RMS for all blocks, no per-block norm, scale only."""
    norm = RMSNorm(2)
    norm.eps = 0.0
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.84852814, 1.13137085]))
    core = make_core()
    assert core.hidden[0].norm.weight.shape == (4,) and [n for n, _ in core.hidden[0].norm.named_parameters()] == [
        "weight"
    ]
    # Block split: an input of block 0 alone reaches the other block's gates through that norm.
    core.embed_carry.linear.weight.data.zero_()
    deter = torch.randn(1, 4)
    other = deter.clone()
    other[:, :2] += 1.0
    moved = step(core, other) - step(core, deter)
    assert (moved[:, 2:].abs() > 1e-6).all()


def test_block_linear_is_block_diagonal() -> None:
    layer = BlockLinear(6, 9, 3)
    x = torch.randn(4, 6)
    dense = torch.block_diag(*layer.weight)
    torch.testing.assert_close(layer(x), x @ dense + layer.bias)
    with pytest.raises(ValueError, match="blocks"):
        BlockLinear(7, 9, 3)


def make_rssm(**kwargs: int) -> BlockRSSM:
    torch.manual_seed(1)
    sizes = dict(tokens=7, action=3, deter=8, hidden=6, stoch=4, classes=5, blocks=2)
    return BlockRSSM(**(sizes | kwargs))


def test_concatenation_orders() -> None:
    """Concatenation order: core [h_g, x0, x1, x2], posterior [h, tokens], features [h, z], decoder [z, h]."""
    state = State(torch.zeros(1, 8), torch.ones(1, 4, 5))
    assert torch.equal(state.feat[0, 8:], torch.ones(20)) and state.feat.shape == (1, 28)
    rssm = make_rssm()
    assert rssm.core.hidden[0].linear.weight.shape == (2, 8 // 2 + 3 * 6, 4)
    rssm.core.hidden[0].linear.weight.data[:, 4:] = 0  # only the own slice of h is left
    rssm.core.hidden[0].norm.eps = 1.0  # and the norm cannot hide a change of scale
    deter, other = torch.randn(1, 8), torch.randn(1, 20)
    same = rssm.core((other, torch.ones(1, 3)), deter), rssm.core((torch.zeros(1, 20), torch.zeros(1, 3)), deter)
    assert torch.equal(*same)
    rssm.post[0][0].linear.weight.data[:, 8:] = 0  # after h come the tokens
    reset = torch.tensor([True])
    a, b = (rssm.observe_step(rssm.initial(1), torch.zeros(1, 3), torch.full((1, 7), v), reset)[1] for v in (0.0, 1.0))
    assert torch.equal(a, b)
    import numpy as np
    from gymnasium.spaces import Box

    space = as_dict({"x": Box(-1, 1, (2,), np.float32)}, "obs")
    decoder = Decoder(space, deter=8, stoch=20, units=6, layers=1, depth=2, mults=(1,), kernel=3, blocks=2)
    decoder.mlp[0].linear.weight.data[:, 20:] = 0  # stoch first, then deter
    x = [decoder(torch.full((1, 1, 8), v), torch.ones(1, 1, 20))["x"].mean for v in (0.0, 1.0)]
    assert torch.equal(*x)


def test_reset_forgets_everything() -> None:
    """Reset: deter, stoch and the previous action are zero at is_first; class 0 of a discrete action is not."""
    rssm, tokens, uniform = make_rssm(), torch.randn(2, 7), torch.rand(2, 4)
    first = torch.tensor([True, True])
    carry = State(torch.randn(2, 8), torch.randn(2, 4, 5))
    action = torch.eye(3)[[0, 0]]
    state, logits = rssm.observe_step(carry, action, tokens, first, uniform)
    zero, zero_logits = rssm.observe_step(rssm.initial(2), torch.zeros(2, 3), tokens, first, uniform)
    torch.testing.assert_close(logits, zero_logits)
    torch.testing.assert_close(state.deter, zero.deter)
    _, class0 = rssm.observe_step(rssm.initial(2), action, tokens, ~first, uniform)
    assert not torch.allclose(class0, zero_logits)


def test_large_actions_are_scaled_elementwise() -> None:
    """Action scaling: [0.5, -2, 1] acts as [0.5, -1, 1], and the gradient of the -2 is halved, not cut."""
    rssm = make_rssm()
    state = State(torch.randn(1, 8), torch.randn(1, 4, 5))
    big = torch.tensor([[0.5, -2.0, 1.0]], requires_grad=True)
    small = torch.tensor([[0.5, -1.0, 1.0]], requires_grad=True)
    outputs = rssm.next_deter(state, big), rssm.next_deter(state, small)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.sum().backward()
    assert big.grad is not None and small.grad is not None
    torch.testing.assert_close(big.grad, small.grad * torch.tensor([1.0, 0.5, 1.0]))


def test_free_nats() -> None:
    """Free nats: max per row after summing the latents; no gradient at all below one nat."""
    rssm = make_rssm(stoch=2, classes=3)
    post = torch.zeros(2, 1, 2, 3)
    post[1, 0, :, 0] = 30.0
    post.requires_grad_()
    prior = torch.zeros(2, 1, 2, 3, requires_grad=True)
    dyn, rep = rssm.kl(post, prior, 1.0)
    assert dyn[0, 0] == 1.0 and dyn[1, 0] > 1.5
    (dyn.sum() + rep.sum()).backward()
    assert post.grad is not None and prior.grad is not None
    assert (post.grad[0] == 0).all() and (prior.grad[0] == 0).all() and (prior.grad[1] != 0).any()
    kls = torch.tensor([0.0, 6.0])
    assert kls.clamp(min=1.0).mean().item() == 3.5


def test_each_side_trains_one_of_the_two() -> None:
    """Sides of the KL: dyn trains the prior only, rep the posterior only, and both have the same value."""
    rssm = make_rssm()
    post = torch.randn(1, 3, 4, 5).requires_grad_()
    prior = torch.randn(1, 3, 4, 5).requires_grad_()
    dyn, rep = rssm.kl(post, prior, 0.0)
    torch.testing.assert_close(dyn, rep)
    d_post, d_prior = torch.autograd.grad(dyn.sum(), [post, prior], retain_graph=True)
    assert not d_post.any()
    assert d_prior.any()
    d_post, d_prior = torch.autograd.grad(rep.sum(), [post, prior])
    assert d_post.any()
    assert not d_prior.any()


def test_the_prior_reads_the_filtered_deter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prior on the filtered path.

    One posterior draw a step and nothing else; the prior is a function of the posterior path's deter.
    """
    rssm, draws, rand = make_rssm(), [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: draws.append(shape) or rand(*shape, **kwargs))
    tokens, action, first = torch.randn(6, 2, 7), torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    state, _ = rssm.observe(rssm.initial(2), action, tokens, first)
    assert draws == [(6, 2, 4)]
    assert rssm.prior_logits(state.deter).shape == (6, 2, 4, 5)


@pytest.mark.parametrize("variant", ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3_2023", "dreamer_v3"])
def test_one_step_is_a_sequence_of_one(variant: str) -> None:
    """What agents act by, layer by layer, is what they learn by."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"classes": 4} | ({"blocks": 2} if variant == "dreamer_v3" else {})
    rssm = RSSM(variant, 7, 2, 16, 8, 4, **(options if variant[-1] != "1" and variant != "planet" else {})).double()
    start = rssm.initial(5)
    start = type(start)(torch.randn_like(start.deter), torch.randn_like(start.stoch))
    action, tokens = (torch.randn(5, n, dtype=torch.float64) for n in (2, 7))
    first, noise = torch.tensor([False, True, False, False, True]), torch.rand(5, 4, dtype=torch.float64)
    state, stats = rssm.observe_step(start, action, tokens, first, noise)
    states, all_stats = rssm.observe(start, action[None], tokens[None], first[None], noise[None])
    torch.testing.assert_close((*state, stats), (*(x[0] for x in states), all_stats[0]), check_dtype=False)


def test_observe_resets_anywhere_and_replays_noise() -> None:
    rssm, uniform = make_rssm(), torch.rand(5, 2, 4)
    tokens, action = torch.randn(5, 2, 7), torch.randn(5, 2, 3)
    first = torch.zeros(5, 2, dtype=torch.bool)
    first[3, 0] = True
    whole, _ = rssm.observe(rssm.initial(2), action, tokens, first, uniform)
    again, _ = rssm.observe(rssm.initial(2), action, tokens, first, uniform)
    assert torch.equal(whole.stoch, again.stoch)
    fresh, _ = rssm.observe(rssm.initial(1), action[3:, :1], tokens[3:, :1], first[3:, :1], uniform[3:, :1])
    torch.testing.assert_close(whole.deter[3:, :1], fresh.deter)


def test_imagine_follows_given_actions() -> None:
    rssm, actions, uniform = make_rssm(), torch.randn(4, 3, 3), torch.rand(4, 3, 4)
    states, logits = rssm.open_loop(rssm.initial(3), actions, uniform)
    state = rssm.initial(3)
    for t in range(4):
        state, logit = rssm.open_loop_step(state, actions[t], uniform[t])
        torch.testing.assert_close(states.deter[t], state.deter)
        torch.testing.assert_close(logits[t], logit)


class Filter(torch.nn.Module):
    """Filters a sequence and predicts the next states, as someone would deploy it."""

    def __init__(self, rssm: Any):
        super().__init__()
        self.rssm = rssm

    def forward(self, tokens: torch.Tensor, action: torch.Tensor, is_first: torch.Tensor, noise: torch.Tensor) -> Any:
        start = self.rssm.initial(tokens.shape[1])
        states, stats = self.rssm.observe(start, action, tokens, is_first, noise)
        dreamt, _ = self.rssm.open_loop(type(start)(*(x[-1] for x in states)), action, noise)
        return states[0], stats, dreamt[0]


@pytest.mark.parametrize("variant", ["dreamer_v3", "dreamer_v2"])
def test_an_exported_rssm_takes_any_batch_and_length(variant: str) -> None:
    torch.manual_seed(0)
    options = {"blocks": 2} if variant == "dreamer_v3" else {}
    model = Filter(RSSM(variant, 7, 2, 16, 8, 4, classes=4, **options))

    def given(T: int, B: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(T, B, 7), torch.randn(T, B, 2), torch.rand(T, B) < 0.2, torch.rand(T, B, 4)

    sizes = {0: torch.export.Dim("T", min=2, max=1024), 1: torch.export.Dim("B", min=2, max=4096)}
    with torch.no_grad():
        exported = torch.export.export(model, given(4, 6), dynamic_shapes=(sizes,) * 4).module()
        for T, B in ((4, 6), (3, 2), (5, 80)):  # 80 x 5 rows take another kernel than 24 where nothing is exported
            arguments = given(T, B)
            torch.testing.assert_close(exported(*arguments), model(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_networks_of_unlike_widths_dream_as_the_reference_does() -> None:
    """No kernel takes them: `rssm_imagine` and `rssm_open_loop` go step by step."""
    torch.manual_seed(0)
    rssm = make_rssm(prior_layers=2)
    space = as_dict(spaces.Box(-1, 1, (3,), np.float32), "action")
    actor, head = Actor(rssm.feat_dim, 8, (7, 5), space), TwoHotHead(rssm.feat_dim, 8, (6, 9), 7)
    rssm.prior = nn.Sequential(MLP(rssm.deter, 6, (9, 4)), Linear(4, rssm.stoch * rssm.classes))
    start, uniform, noise = rssm.initial(5), torch.rand(4, 5, rssm.stoch), torch.randn(5, 5, 3)
    action, results = torch.randn(4, 5, 3), []
    for backend in ("cpu", "ref"):
        with fastwm.backend(backend):
            weights = rssm.observe_weights(), rssm.prior_weights()
            imagined = ops.rssm_imagine(
                *start, uniform, noise, *weights, actor.params, tuple(actor.specs.values()), readouts=[head.params]
            )
            open_loop = rssm.open_loop(start, action, uniform)
            loss = sum(out.square().sum() for out in imagined[-1])
            results.append((imagined, open_loop, torch.autograd.grad(loss, [*actor.parameters()])))
    (*ours, grads), (*wanted, plain) = results
    torch.testing.assert_close(ours, wanted)
    for grad, other in zip(grads, plain, strict=True):  # sums, rounded by their largest terms
        torch.testing.assert_close(grad, other, rtol=0, atol=1e-5 * float(other.abs().max()))
