"""Parts of PlaNet, Dreamer V1 and DreamerV2: distributions, free nats, networks, planner, optimiser, exploration."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.planet import cross_entropy_method
from fastwm.agents.world import quantise
from fastwm.nn import DREAMER_V2, PLANET, BernoulliHead, NormalHead, StridedDecoder, StridedEncoder
from fastwm.nn.distributions import Bernoulli, TanhNormal, TruncatedNormal, UnitNormal
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.layers import Widths
from fastwm.optim import KerasAdam
from tests.agents_under_test import IMAGE, tiny

# Distributions


def test_the_mode_is_each_rows_own() -> None:
    """Mode of samples: the most likely of 100 samples, chosen for every row apart."""
    torch.manual_seed(0)
    mean, std = torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), torch.full((2, 2), -3.0)
    mode = TanhNormal(mean, std, minimum=0.05).mode()
    torch.testing.assert_close(mode, torch.tanh(5 * torch.tanh(mean / 5)), atol=0.03, rtol=0)
    one = TanhNormal(mean[:, 0], std[:, 0], minimum=0.05).mode()  # an action without dimensions
    assert one.shape == (2,) and one[0] < -0.9 and one[1] > 0.9


def test_tanh_normal_density_is_one() -> None:
    dist = TanhNormal(torch.tensor(0.3), torch.tensor(-0.5), minimum=0.1)
    y = torch.linspace(-1, 1, 200_001)[1:-1]
    assert torch.trapezoid(dist.log_prob(y).exp(), y).item() == pytest.approx(1, abs=1e-3)
    torch.manual_seed(0)
    x = dist.mean + dist.std * torch.randn(100_000)
    torch.testing.assert_close(dist.entropy(100_000), -dist._log_prob_before_tanh(x).mean(), atol=0.01, rtol=0)


def test_the_truncated_normal_is_renormalised() -> None:
    """Truncated normal.

    The density integrates to 1 on [-1, 1]; entropy, and the sampler's gradient, in the reference's form.
    """
    y = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    for raw_mean, raw_std in ((0.0, 0.0), (0.7, -1.0), (-2.0, 1.5)):
        dist = TruncatedNormal(torch.tensor(raw_mean), torch.tensor(raw_std))
        density = dist.log_prob(y.float()).double().exp()
        assert torch.trapezoid(density, y).item() == pytest.approx(1, abs=1e-4)
        entropy = -torch.trapezoid(density * density.log(), y)
        assert dist.entropy().item() == pytest.approx(entropy.item(), abs=1e-4)
    wide = TruncatedNormal(torch.tensor(0.0), torch.tensor(0.0))
    assert wide.std.item() == pytest.approx(1.1)
    raw = torch.zeros(3, requires_grad=True)
    dist = TruncatedNormal(raw, torch.zeros(3))
    dist.sample(torch.tensor([0.01, 0.5, 0.99])).sum().backward()
    torch.testing.assert_close(raw.grad, torch.ones(3))  # noise held fixed; exact would be less than 1 at the edges
    assert dist.entropy().requires_grad and dist.log_prob(torch.zeros(3)).requires_grad  # also after a sample


def test_half_the_square_and_the_constant() -> None:
    """Halves and constants: one pixel off by 0.1 costs 0.005, and every pixel the constant."""
    mean, target = torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1)
    target[0, 0, 0, 0] = 0.1
    assert UnitNormal(mean, 3).loss(target).item() == pytest.approx(0.005 + 4 * 0.91893853)
    assert UnitNormal(torch.zeros(()), 0).loss(torch.tensor(0.1)).item() == pytest.approx(0.005 + 0.91893853)


def test_the_continuations_loss_falls_towards_its_target() -> None:
    """Sign of the continuation's loss."""
    logit = torch.tensor(0.0, requires_grad=True)
    Bernoulli(logit).loss(torch.tensor(0.99)).backward()
    assert logit.grad is not None and logit.grad < 0


# Free nats


def gaussian_world() -> Any:
    """Posterior and prior with KLs [0, 6]."""
    raw = math.log(math.expm1(0.9))  # a deviation of 1
    post = torch.tensor([[[0.0, raw]], [[math.sqrt(12), raw]]])
    return SimpleNamespace(post_stats=post, prior_stats=torch.tensor([[[0.0, raw]], [[0.0, raw]]]))


@pytest.mark.parametrize(("name", "expected"), [("planet", 1.5), ("dreamer_v1", 3.0)])
def test_where_the_maximum_goes(name: str, expected: float) -> None:
    """Free nats: PlaNet subtracts from every KL; V1 holds the mean of the batch above (V2: `test_categorical`)."""
    agent = tiny(name, free_nats=3.0)
    assert agent.divergence(gaussian_world()).item() == pytest.approx(expected, abs=1e-4)


def test_v1_below_the_threshold_has_no_gradient() -> None:
    agent, world = tiny("dreamer_v1", free_nats=50.0), gaussian_world()
    """Free nats."""
    world.prior_stats.requires_grad_()
    agent.divergence(world).backward()
    assert not world.prior_stats.grad.any()


def test_v2_most_of_the_kl_trains_the_prior() -> None:
    """Sides of the KL: 0.8 of the gradient goes to the prior's side, 0.2 to the posterior's."""
    agent = tiny("dreamer_v2", free_nats=0.0)
    torch.manual_seed(0)
    post, prior = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    agent.divergence(SimpleNamespace(post_stats=post, prior_stats=prior)).backward()
    p, q = torch.distributions.Categorical(logits=post), torch.distributions.Categorical(logits=prior)
    kl = torch.distributions.kl_divergence(p, q).sum(-1).mean()
    d_post, d_prior = torch.autograd.grad(kl, (post, prior))
    torch.testing.assert_close(post.grad, 0.2 * d_post, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(prior.grad, 0.8 * d_prior, atol=1e-6, rtol=1e-4)


# Networks


def test_sizes_of_the_image_networks() -> None:
    """64-31-14-6-2 and 1-5-13-30-64; 1024 tokens and inputs at depth 32."""
    encoder = StridedEncoder(IMAGE, 8, 1, 32, DREAMER_V2, PLANET)
    decoder = StridedDecoder(IMAGE, 230, 8, 1, 32, DREAMER_V2, PLANET)
    sizes: list[int] = []
    for stage in (*encoder.cnn, *decoder.cnn, decoder.conv_out):
        stage.register_forward_hook(lambda module, args, out: sizes.append(out.shape[-1]))
    assert encoder.out_dim == encoder({"image": torch.zeros(2, 64, 64, 3)}).shape[-1] == 1024
    assert decoder.conv_in.out_features == 1024
    assert decoder(torch.zeros(2, 230))["image"].mean.shape == (2, 64, 64, 3)
    assert sizes == [31, 14, 6, 2, 5, 13, 30, 64]


def test_five_bit_images() -> None:
    """Quantised to 32 levels, with noise of one level's width, centred."""
    torch.manual_seed(0)
    image = torch.arange(256, dtype=torch.uint8).view(16, 16, 1)
    values = quantise(image, 5) + 0.5
    assert torch.equal((values * 32).floor().int().flatten(), torch.arange(256, dtype=torch.int32) // 8)
    assert not torch.equal(quantise(image, 5), quantise(image, 5))


def test_keras_initialisation() -> None:
    """Glorot uniform, orthogonal recurrent weights in V1, gates of PlaNet that start at one."""
    agent = tiny("dreamer_v1", deter=64, hidden=64, units=64)
    weight = agent.world.reward.mlp[0].linear.weight
    assert weight.abs().max() <= math.sqrt(6 / sum(weight.shape)) and not agent.world.reward.out.bias.any()
    recurrent = agent.world.rssm.cell.weight_hh.detach()
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(64), atol=1e-4, rtol=0)
    assert (tiny("planet").world.rssm.cell.bias_ru == 1).all()


@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("layers", [0, 2, (9, 4)])
@pytest.mark.parametrize("norm", [False, True])
def test_heads_read_one_hots_apart_as_they_read_all_together(layers: Widths, norm: bool, rows: int) -> None:
    torch.manual_seed(0)
    state = GRUState(torch.randn(rows, 3, 7), torch.eye(4)[torch.randint(4, (rows, 3, 6))])
    x, onehot = state.parts
    assert torch.equal(x, state.deter) and onehot is not None and onehot.shape == (rows, 3, 24)
    sizes = (31, 9, layers)
    normal, bernoulli = (head(*sizes, style=DREAMER_V2.normed(norm)) for head in (NormalHead, BernoulliHead))
    for read in (lambda *feat: normal(*feat).mean, lambda *feat: bernoulli(*feat).logit):
        together, apart = read(state.feat), read(x, onehot)
        torch.testing.assert_close(apart, together)
        assert torch.isfinite(apart).all() and apart.std() > 0
    continuous = GRUState(torch.randn(5, 7), torch.randn(5, 6))
    feat, nothing = continuous.parts
    assert nothing is None and torch.equal(feat, torch.cat([continuous.stoch, continuous.deter], -1))


# Planner


def test_the_fit_of_the_elites() -> None:
    """Fit of the elites: population variance plus 1e-6; the mean is returned, not the best sample."""
    elites = torch.tensor([0.5, 1.0, -0.5, 0.0])
    noise = torch.zeros(2, 1, 5, 1, 1)
    noise[0, 0, :, 0, 0] = torch.cat([elites, torch.tensor([9.0])])
    noise[1] = 1.0
    seen: list[Tensor] = []

    def score(actions: Tensor, iteration: int) -> Tensor:
        seen.append(actions)
        return -actions[..., 0, 0] * (actions[..., 0, 0] == 1) * 2.0 - torch.arange(5.0)  # the last is worst

    plan = cross_entropy_method(score, noise, 4)
    assert seen[0][0, :, 0, 0].tolist() == [0.5, 1.0, -0.5, 0.0, 1.0]  # clipped
    assert (seen[1] == 0.25 + 0.55901789).all()
    assert plan.shape == (1, 1, 1) and plan.item() == pytest.approx(0.80901789)


def test_environments_plan_alone() -> None:
    """Environments plan alone: two planned together equal each planned by itself with the same noise."""
    agent = tiny("planet")
    start = agent.world.rssm.initial(2)
    start = type(start)(torch.randn_like(start.deter), torch.randn_like(start.stoch))
    noise, latent = torch.randn(2, 2, 6, 3, 2), torch.randn(2, 3, 12, 4)
    with torch.no_grad():
        both = agent.plan(start, noise, latent)
        for env in range(2):
            alone = type(start)(*(x[env : env + 1] for x in start))
            plan = agent.plan(alone, noise[:, env : env + 1], latent[:, :, 6 * env : 6 * env + 6])
            torch.testing.assert_close(plan[0], both[env])
    assert not torch.allclose(both[0], both[1])


# Optimiser


def test_a_step_counted_by_a_tensor_is_the_same_step() -> None:
    """As a CUDA graph needs it; the tensor is changed in place, so that a replay counts on."""
    results, counter = [], torch.tensor(0.0)
    for capturable in (False, True):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = KerasAdam([p], lr=0.1, eps=1e-2, clip=1.0, decay=1e-3)
        optimizer.param_groups[0]["capturable"] = capturable
        for step in range(4):
            optimizer.minimize((p * torch.tensor([1.0, -3.0]) * step).sum())
            if capturable and step == 0:
                counter = optimizer.param_groups[0]["steps"]
        results.append(p.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    assert optimizer.param_groups[0]["steps"] is counter and counter.item() == 4


def test_every_group_is_stepped_and_all_are_clipped_together() -> None:
    """A group of its own learning rate is what parameters of another rate need."""
    p, q, alone = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(3))
    optimizer = KerasAdam([{"params": [p]}, {"params": [q], "lr": 0.2}], lr=0.1, eps=1e-2, clip=1.0)
    single = KerasAdam([alone], lr=0.2, eps=1e-2, clip=1.0)
    for _ in range(3):
        norm = optimizer.minimize(3 * p.sum() + 4 * q.sum())
        assert norm.item() == pytest.approx(2**0.5 * 5)
        single.minimize(4 / 5 / 2**0.5 * alone.sum())  # what the clipping leaves of q's
    torch.testing.assert_close(q, alone)
    assert (p < 1).any() and not torch.equal(p, q)
    assert [group["steps"] for group in optimizer.param_groups] == [3, 3]


def test_decay_is_a_share_whatever_the_learning_rate() -> None:
    """Weight decay: a zero gradient shrinks every weight by the share, bias or not."""
    for lr in (0.0, 1e-4):
        p = torch.nn.Parameter(torch.tensor([2.0, -4.0], dtype=torch.float64))
        optimizer = KerasAdam([p], lr=lr, eps=1e-5, clip=100, decay=1e-6)
        optimizer.minimize((p * 0).sum())
        torch.testing.assert_close(p.detach(), torch.tensor([2.0, -4.0], dtype=torch.float64) * (1 - 1e-6))


def test_adams_epsilon_is_not_bias_corrected_and_gradients_are_clipped_together() -> None:
    p, q = (torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    optimizer = KerasAdam([p, q], lr=0.1, eps=1e-2, clip=1.0)
    m = v = np.zeros(2)
    value = np.ones(2)
    for t, grad in enumerate(([3.0, 4.0], [0.1, -0.2], [-6.0, 8.0]), 1):
        norm = optimizer.backward((torch.stack([p, q])[:, 0] * torch.tensor(grad)).sum())
        optimizer.step()
        assert norm.item() == pytest.approx(np.linalg.norm(grad))
        g = np.array(grad) / max(1.0, np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        value = value - 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-2)
        np.testing.assert_allclose([p.item(), q.item()], value, rtol=1e-9)


# Exploration


def test_exploration_is_what_the_model_remembers() -> None:
    """The noisy, clipped action goes to the environment and into the state; evaluation is free of noise."""
    torch.manual_seed(0)
    agent = tiny("dreamer_v1", explore=100.0)
    obs = {"pos": torch.zeros(3, 3), "height": torch.zeros(3), "is_first": torch.ones(3, dtype=torch.bool)}
    action, state = agent.act(obs)
    assert (action.abs() == 1).all() and torch.equal(action, state["action"])
    discrete = tiny("dreamer_v2", act=spaces.Discrete(50), explore=1.0)
    draws = torch.cat([discrete.act(obs)[0] for _ in range(30)])
    assert len(draws.unique()) > 30
