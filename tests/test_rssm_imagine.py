"""The imagined rollout: readouts, the modules' own loop, one step in bfloat16. See test_contract.py for the rest."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.nn import Actor, BernoulliHead, BlockRSSM, State, TwoHotHead
from fastwm.nn.spaces import as_dict, decode, encode, total_width
from fastwm.ops import MLPWeights, mlp, rssm_imagine, rssm_open_loop
from fastwm.ops.rssm_imagine import _by_steps
from tests.backends import needs_cpu, needs_kernel

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("rssm_imagine")]

BOX = spaces.Box(-1, 1, (2, 3), np.float32)
ACTIONS: dict[str, Any] = {
    "continuous": BOX,
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([3, 5, 2]),
    "dict": {"move": BOX, "jump": spaces.Discrete(2), "look": spaces.MultiDiscrete([2, 3])},
}
TINY = dict(deter=12, hidden=6, stoch=4, classes=5, blocks=3)


def make(act: Any, H: int = 4, N: int = 7, layers: int = 3, dtype: torch.dtype = torch.float64, **sizes: int) -> Any:
    """Actor, model and arguments."""
    torch.manual_seed(0)
    space = as_dict(act, "action")
    rssm = BlockRSSM(3, total_width(space), **(TINY | sizes), prior_layers=layers).to(dtype)
    actor = Actor(rssm.feat_dim, 11, layers, space, 1.0, 0.1).to(dtype)
    for p in (*rssm.parameters(), *actor.parameters()):
        p.data += 0.3 * torch.randn_like(p)
    heads = tuple(actor.specs.values())
    start = State(torch.randn(N, rssm.deter, dtype=dtype), torch.randn(N, rssm.stoch, rssm.classes, dtype=dtype))
    noise = [(torch.rand if h.classes else torch.randn)(H + 1, N, h.size, dtype=dtype) for h in heads]
    args = (*start, torch.rand(H, N, rssm.stoch, dtype=dtype), torch.cat(noise, -1))
    return actor, rssm, args, (rssm.observe_weights(), rssm.prior_weights(), actor.params, heads, rssm.unimix, 0.1)


def heads_of(rssm: BlockRSSM, dtype: torch.dtype = torch.float64) -> list[MLPWeights]:
    """Three readouts, of which the second is a constant."""
    torch.manual_seed(1)
    feat = rssm.feat_dim
    heads = [TwoHotHead(feat, 10, 3, 7), BernoulliHead(feat, 5, 1), TwoHotHead(feat, 33, 2, 9)]
    for head in heads:
        for p in head.to(dtype).parameters():
            p.data += 0.3 * torch.randn_like(p)
    heads[1].requires_grad_(False)
    return [head.params for head in heads]


@pytest.mark.parametrize("backend", ["ref", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize("N", [1, 7, 150, 0])
def test_readouts_are_the_mlps_of_the_states(N: int, backend: str) -> None:
    """Values, and gradients of the weights, through a dream that has none."""
    actor, rssm, args, weights = make(ACTIONS["dict"], 3, N)
    readouts = heads_of(rssm)
    with fastwm.backend(backend):
        deter, stoch, *_, outputs = rssm_imagine(*args, *weights, readouts=readouts)
    assert len(outputs) == 4 and not deter.requires_grad
    assert [x.requires_grad for x in outputs] == [True, True, False, True]
    with fastwm.backend("ref"):
        want = [mlp(deter, net, stoch.flatten(-2)) for net in (actor.params, *readouts)]
    assert_close(outputs, tuple(want), atol=1e-10, rtol=1e-10)
    params = [*actor.parameters(), *(p for i in (0, 2) for p in torch.utils._pytree.tree_leaves(readouts[i][:2]))]
    grads = [torch.randn_like(x) for x in want]
    wanted = [0, 1, 3]
    for used in (wanted, wanted[1:]):  # where the actor's is not asked for, it has none
        ours, theirs = (
            torch.autograd.grad([x[i] for i in used], params, [grads[i] for i in used], True, allow_unused=True)
            for x in (outputs, want)
        )
        assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    with torch.no_grad(), fastwm.backend(backend):
        again = rssm_imagine(*args, *weights, readouts=readouts)[-1]
    assert all(torch.equal(x, y) and not x.requires_grad for x, y in zip(again, outputs))


@needs_cpu
def test_readouts_under_torch_func() -> None:
    _, rssm, args, (w, prior, net, heads, *mix) = make(BOX)
    critic = heads_of(rssm)[0]

    def loss(bias: Tensor) -> Tensor:
        readout = critic._replace(out=critic.out._replace(bias=bias))
        outputs = rssm_imagine(*args, w, prior, net, heads, *mix, readouts=[readout])[-1]
        return outputs[1].square().sum()

    bias = critic.out.bias.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(bias), bias)
    assert_close(torch.func.grad(loss)(bias.detach()), want)


@pytest.mark.parametrize("backend", ["ref", pytest.param("cpu", marks=needs_cpu)])
def test_readouts_keep_their_gradients_under_autocast(backend: str) -> None:
    """Autocast keeps a weight's cast for its whole region; one made inside the dream would have no gradient."""
    actor, rssm, args, weights = make(BOX, 2, 16, dtype=torch.float32, deter=96)
    readouts = heads_of(rssm, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), fastwm.backend(backend):
        deter, stoch, *_, outputs = rssm_imagine(*args, *weights, readouts=readouts)
    exact = [mlp(deter, net, stoch.flatten(-2)) for net in (actor.params, *readouts)]
    for ours, truth in zip(outputs, exact):
        assert (ours - truth).norm() < 0.02 * truth.norm()
    grads = [torch.randn_like(x) for x in exact]
    params = list(actor.parameters())
    ours, theirs = (torch.autograd.grad(x[0].float(), params, grads[0], True) for x in (outputs, exact))
    for got, want in zip(ours, theirs):
        assert (got - want).norm() < 0.05 * want.norm()


@needs_cpu
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS)
def test_fused_parts_equal_reference(act: Any, layers: int) -> None:
    """What serves a GPU: a step at a time, out of the operators that have kernels there."""
    for H, N in [(1, 1), (4, 7), (3, 0)]:
        _, _, args, weights = make(act, H, N, layers)
        ours = _by_steps(*args, *weights, 1e-4)
        with fastwm.backend("ref"):
            assert_close(ours, rssm_imagine(*args, *weights)[:-1], atol=1e-10, rtol=1e-10)
        assert not any(x.requires_grad for x in ours)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_equals_reference_on_a_gpu(precision: str) -> None:
    dtype = torch.float64 if precision == "float64" else torch.float32
    _, _, args, weights = make(ACTIONS["dict"], 3, 37, dtype=dtype, deter=96, hidden=40, stoch=5, classes=7)
    to_gpu = torch.utils._pytree.tree_map_only(Tensor, Tensor.cuda, (args, weights))
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        ours = rssm_imagine(*to_gpu[0], *to_gpu[1])
    with fastwm.backend("ref"):
        exact = rssm_imagine(*args, *weights)
    if precision == "float64":
        assert_close(ours, torch.utils._pytree.tree_map(Tensor.cuda, exact), atol=1e-10, rtol=1e-10)
    else:  # one flipped sample parts two trajectories
        assert_close(ours[0][1].cpu(), exact[0][1], atol=0.1, rtol=0.1)


@needs_cpu
@pytest.mark.parametrize("layers", [1, 3])
def test_open_loop_equals_reference(layers: int) -> None:
    for H, N in [(1, 1), (4, 7), (2, 150), (3, 0)]:
        _, rssm, (*start, uniform, _), (w, prior, *_) = make(BOX, H, N, layers)
        action = 2 * torch.randn(H, N, 6, dtype=torch.float64)
        with torch.no_grad():
            ours = rssm_open_loop(*start, uniform, action, w, prior, rssm.unimix)
        with fastwm.backend("ref"):
            exact = rssm_open_loop(*start, uniform, action, w, prior, rssm.unimix)
        assert_close(ours, exact, atol=1e-10, rtol=1e-10)
        assert exact[0].requires_grad
        # Where a gradient is wanted the reference serves, whatever the backend.
        with_grad = rssm_open_loop(*start, uniform, action, w, prior, rssm.unimix)
        (grad,) = torch.autograd.grad(with_grad[0].sum(), [w.gates.bias])
        assert grad.shape == w.gates.bias.shape
        with pytest.raises(ValueError, match=r"action \[\d, \d+, 6\]|H, N, A|embed_action"):
            rssm_open_loop(*start, uniform, action[..., :-1], w, prior)


@pytest.mark.parametrize("backend", ["ref", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS)
def test_equals_the_modules_own_steps(act: Any, backend: str) -> None:
    """The loop that the golden files checked first, and `RSSM.imagine` with the actions that it chose."""
    actor, rssm, args, weights = make(act, dtype=torch.float32)
    deter, stoch, uniform, noise = args
    space = as_dict(act, "action")

    def policy(state: State, step: int) -> tuple[dict[str, Tensor], Tensor]:
        parts = noise[step].split([head.size for head in actor.specs.values()], -1)
        shapes = {key: (len(deter), *(space[key].shape or ())) for key in actor.keys}
        draws = {key: part.reshape(shapes[key]) for key, part in zip(actor.keys, parts)}
        action = actor(state.feat).sample(draws)
        return action, encode(space, action)

    with torch.no_grad(), fastwm.backend(backend):
        got_deter, got_stoch, got_logits, encoded, _ = rssm_imagine(*args, *weights)
        open_loop = rssm.open_loop(State(deter, stoch), encoded[:-1], uniform)
        state, states, logits, actions = State(deter, stoch), [], [], []
        for step in range(len(noise)):
            action, onehots = policy(state, step)
            actions.append(action)
            if step < len(uniform):
                state, logit = rssm.open_loop_step(state, onehots, uniform[step])
                states.append(state)
                logits.append(logit)
        want_deter, want_stoch = (torch.stack(part) for part in zip(*states))
    close = dict(atol=3e-5, rtol=3e-5)
    assert torch.equal(got_deter[0], deter) and torch.equal(got_stoch[0], stoch)
    dreamt = got_deter[1:], got_stoch[1:], got_logits
    assert_close(dreamt, (want_deter, want_stoch, torch.stack(logits)), **close)
    assert_close((*open_loop[0], open_loop[1]), dreamt, **close)
    got = decode(space, encoded)
    for key in space:
        want = torch.stack([action[key] for action in actions])
        assert got[key].dtype == want.dtype
        assert_close(got[key], want, **close)
    assert_close(encode(space, got), encoded)


@needs_cpu
@pytest.mark.parametrize("N", [1, 7, 16, 37, 150])
def test_bfloat16_error_is_within_twice_pytorchs(N: int) -> None:
    """One step, so that no flipped sample parts the trajectories; both against float64."""
    actor, rssm, args, weights = make(BOX, 1, N, dtype=torch.float64, deter=96, hidden=40, stoch=5, classes=7)
    with fastwm.backend("ref"):
        exact = rssm_imagine(*args, *weights)
    for module in (rssm, actor):
        module.float()
    args = [x.float() for x in args]
    weights = (rssm.observe_weights(), rssm.prior_weights(), actor.params, *weights[3:])
    with torch.autocast("cpu", torch.bfloat16):
        ours = rssm_imagine(*args, *weights)
        with fastwm.backend("ref"):
            theirs = rssm_imagine(*args, *weights)
    for name, x, y, truth in zip(("deter", "stoch", "logits", "action"), ours, theirs, exact):
        if name == "stoch":
            continue
        step = 1 if name == "deter" else 0  # deter 0 is given
        x, y, truth = (v[step].double() for v in (x, y, truth))
        assert x.dtype == truth.dtype and (x - truth).norm() <= 2 * (y - truth).norm() + 1e-6, name
        assert (x - truth).norm() <= 0.05 * truth.norm()
