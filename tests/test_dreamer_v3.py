"""DreamerV3's agent: parameter counts, spaces, and the traps that live in its loss."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import DreamerV3, DreamerV3Config, Noise
from fastwm.agents.official import load_official, official_names
from fastwm.nn import BlockRSSM, PercentileNormalizer, State
from fastwm.nn.layers import BlockLinear, Conv2d, Linear
from fastwm.nn.normalize import percentile
from fastwm.runner.config import TrainConfig, with_presets
from tests import agents_under_test
from tests.agents_under_test import BOX, VECTOR, make_batch


def tiny(obs: Mapping[str, spaces.Space] | None = None, act: Any = BOX, **changes: Any) -> DreamerV3:
    agent: DreamerV3 = agents_under_test.tiny("dreamer_v3", obs, act, **changes)
    return agent


def noise_for(agent: DreamerV3, steps: int = 5, batch: int = 3) -> Noise:
    c, n = agent.config, steps * batch
    action = {
        key: (torch.randn if isinstance(space, spaces.Box) else torch.rand)(c.imag_length + 1, n, *(space.shape or ()))
        for key, space in agent.act_space.items()
    }
    return Noise(torch.rand(steps, batch, c.stoch), torch.rand(c.imag_length, n, c.stoch), action)


# Sizes

SIZES = {
    "size1m": (640_867, 686_846, 769_762), "size12m": (9_738_019, 10_494_158, 11_808_850),
    "size25m": (21_782_947, 23_489_326, 26_444_402), "size50m": (38_612_003, 41_650_062, 46_900_882),
    "size100m": (86_622_499, 93_468_238, 105_276_626), "size200m": (153_769_507, 165_948_686, 186_936_082),
    "size400m": (345_473_059, 372_896_398, 420_106_130),
}  # fmt: skip
WALKER = {
    "orientations": spaces.Box(-np.inf, np.inf, (14,), np.float32),
    "height": spaces.Box(-np.inf, np.inf, (), np.float32),
    "velocity": spaces.Box(-np.inf, np.inf, (9,), np.float32),
}
ACTION6 = spaces.Box(-1, 1, (6,), np.float32)


def build(size: str, obs: Mapping[str, spaces.Space], act: spaces.Space) -> DreamerV3:
    config = with_presets(TrainConfig(DreamerV3Config()), "dreamer_v3", [size]).agent
    with torch.device("meta"):
        return DreamerV3(obs, act, config)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size: str) -> None:
    """Bias under the norm: biases are kept under the norms; every published size to the last parameter."""
    image = {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}
    gray = {"image": spaces.Box(0, 255, (96, 96, 1), np.uint8)}
    counts = (count(build(size, WALKER, ACTION6)), count(build(size, image, ACTION6)),
              count(build(size, gray, spaces.Discrete(18))))  # fmt: skip
    assert counts == SIZES[size]


def test_parts_of_the_walker() -> None:
    agent = build("size1m", WALKER, ACTION6)
    parts = [agent.encoder, agent.rssm, agent.decoder, agent.reward, agent.cont, agent.actor, agent.critic]
    assert [count(part) for part in parts] == [10_112, 364_416, 51_096, 57_663, 41_153, 50_316, 66_111]


@torch.no_grad()
def test_initialisation() -> None:
    """Initialisation: std sqrt(1/fan_in) cut at two sigmas; block layers take the full input as fan-in; outscales."""
    torch.manual_seed(0)
    for layer, fan_in in ((Linear(400, 300), 400), (BlockLinear(1024, 512, 8), 1024), (Conv2d(16, 32, 5), 400)):
        weight = layer.weight
        assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert weight.abs().max() <= 2 * 1.1368 * fan_in**-0.5 + 1e-7
        assert layer.bias is not None and not layer.bias.any()
    agent = tiny()
    assert not agent.reward.out.weight.any() and not agent.critic.out.weight.any()
    assert 0 < agent.actor.heads[0].mean.weight.std() < 0.02 and agent.cont.out.weight.std() > 0.1
    assert pytest.approx(0.00552427, rel=1e-5) == 32768**-0.5
    with torch.device("meta"):
        core = BlockRSSM(1024, 6, 8192, 1024, 32, 64).core
    assert core.hidden[0].linear.blocks * core.hidden[0].linear.weight.shape[1] == 32768


# Spaces


@pytest.mark.parametrize("shape", [(64, 64, 3), (84, 84, 1), (50, 70, 3), (28, 28, 1)], ids=str)
def test_images_of_any_size_beside_vectors(shape: tuple[int, ...]) -> None:
    obs = VECTOR | {"image": spaces.Box(0, 255, shape, np.uint8), "mode": spaces.Discrete(3)}
    agent = tiny(obs)
    batch = make_batch(agent, 3, 2)
    loss = agent.loss(batch)
    assert loss.world.recon["image"].mean.shape == (3, 2, *shape)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in agent.parameters() if p.requires_grad)
    video = agent.imagine_video(batch, context=1)["image"]
    assert video.shape == (3, 2, 3 * shape[0], *shape[1:]) and video.dtype == torch.uint8
    assert agent.open_loop(batch, 1)["mode"].max() < 3


def test_too_large_and_unsupported_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        tiny({"image": spaces.Box(0, 255, (512, 512, 3), np.uint8)})
    with pytest.raises(ValueError, match="Text"):
        tiny({"words": spaces.Text(5)})
    agent = tiny()
    with pytest.raises(ValueError, match="no image"):
        agent.imagine_video(make_batch(agent))


# Data


def test_the_action_at_a_row_leads_to_the_next() -> None:
    """Action alignment: changing the action of row t changes the state of row t+1 and nothing before it."""
    agent = tiny()
    batch, noise = make_batch(agent), noise_for(agent)
    before = agent.loss(batch, noise).world.state.deter
    batch["action"] = batch["action"].clone()
    batch["action"][3] += 0.3
    after = agent.loss(batch, noise).world.state.deter  # trained rows are rows 1..T
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, False, False, True, True]


def test_windows_start_from_the_stored_latent() -> None:
    """Stored latents: the context row's latent is the start; write-back hits exactly the trained rows."""
    agent = tiny()
    batch, noise = make_batch(agent), noise_for(agent)
    before = agent.loss(batch, noise).world.state.deter
    zero = batch | {"deter": torch.zeros_like(batch["deter"])}
    assert not torch.allclose(before[0], agent.loss(zero, noise).world.state.deter[0])
    written: list[tuple[Tensor, dict[str, Tensor]]] = []
    agent.update(batch, noise, write_back=lambda index, latents: written.append((index, latents)))
    index, latents = written[0]
    assert torch.equal(index, batch["index"][1:])
    torch.testing.assert_close(latents["deter"], before.detach())
    assert latents["stoch"].dtype == torch.uint8 and latents["stoch"].shape == (5, 3, 4)


def test_is_first_inside_a_window_cuts_the_past() -> None:
    """Reset."""
    agent = tiny()
    batch, noise = make_batch(agent), noise_for(agent)
    batch["is_first"][3] = True
    before = agent.loss(batch, noise).world.state.deter
    batch["deter"] = torch.randn_like(batch["deter"])
    after = agent.loss(batch, noise).world.state.deter
    assert not torch.equal(before[1], after[1]) and torch.equal(before[2:], after[2:])


# Returns and losses


def test_index_convention_and_horizon() -> None:
    """Index of the return, Horizon.

    H actions, H+1 states, H targets; reward and continuation of the start state are not in any return.
    """
    agent = tiny()
    dream = agent.loss(make_batch(agent), noise_for(agent)).dream
    assert dream.state.deter.shape[0] == 4 and dream.returns.shape == (3, 15) and dream.action["action"].shape[0] == 4
    r, c, v, lam = dream.reward, dream.discount, dream.value.mean.detach(), agent.config.lam
    expected = v[3]
    for k in (2, 1, 0):
        expected = r[k + 1] + c[k + 1] * ((1 - lam) * v[k + 1] + lam * expected)
        torch.testing.assert_close(dream.returns[k], expected)


def test_weights_include_the_first_continuation() -> None:
    """Loss weights: cumprod of the predicted continuation from the start state on; terminal starts weigh nothing."""
    agent = tiny()
    agent.cont.out.weight.data.zero_()
    batch, noise = make_batch(agent), noise_for(agent)
    agent.cont.out.bias.data.fill_(-30.0)
    assert agent.loss(batch, noise).dream.losses["value"].abs().max() < 1e-9
    agent.cont.out.bias.data.fill_(0.0)
    dream = agent.loss(batch, noise).dream
    plain = agent.value_loss(dream.value, dream.slow_value, dream.returns)
    torch.testing.assert_close(dream.losses["value"], plain * torch.tensor([0.5, 0.25, 0.125])[:, None])


def test_ends_in_the_replay_return() -> None:
    """Two kinds of end: either end masks its row and cuts the chain; only a termination stops the bootstrap."""
    agent = tiny()
    batch, noise = make_batch(agent), noise_for(agent)
    batch["is_last"][3, 0] = batch["is_last"][3, 1] = batch["is_terminal"][3, 0] = True  # trained row 2
    loss = agent.loss(batch, noise)
    boot, gamma = loss.dream.returns[0].view(5, 3), agent.config.discount
    reward = batch["reward"][1:]
    torch.testing.assert_close(loss.replay_returns[1, 0], reward[2, 0])
    torch.testing.assert_close(loss.replay_returns[1, 1], reward[2, 1] + gamma * boot[2, 1])
    assert loss.terms["replay_value"].shape == (4, 3)
    assert (loss.terms["replay_value"][2] == 0).tolist() == [True, True, False]


def test_percentiles_interpolate() -> None:
    """Percentiles: p5 of 0..100 is 5, of 0..9 is 0.45."""
    norm = PercentileNormalizer()
    x = torch.arange(101.0)
    assert norm.update(x).item() == 1.0
    assert (norm.lo.item(), norm.hi.item()) == pytest.approx((0.05, 0.95))
    for _ in range(99):
        norm.update(x)
    assert (norm.lo.item(), norm.hi.item(), norm.scale.item()) == pytest.approx(
        (3.16983829, 60.22692758, 57.05708929), rel=1e-4
    )
    single = PercentileNormalizer(rate=1.0)
    single.update(torch.arange(10.0))
    assert single.lo.item() == pytest.approx(0.45)


@pytest.mark.parametrize("count", [1, 2, 3, 20, 101, 1000])
def test_percentiles_are_torchs_quantiles(count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)).double()
    for share in (0.0, 0.01, 0.05, 0.3, 0.5, 0.9, 0.95, 0.999, 1.0):
        torch.testing.assert_close(percentile(x, share), torch.quantile(x, share))


def test_scaling_all_returns_leaves_the_actor_alone() -> None:
    """Return scale: with a converged scale, values and rewards 1000 times larger give the same actor gradient."""
    agent = tiny(return_rate=1.0, return_limit=1e-8, actor_entropy=0.0)
    agent.critic.out.weight.data.normal_(), agent.reward.out.weight.data.normal_()
    batch, noise = make_batch(agent), noise_for(agent)
    grads = []
    for factor in (1.0, 1000.0):
        for head in (agent.critic, agent.reward, agent.slow_critic):
            head.bins.mul_(factor)
        loss = agent.dream(agent.world_model(batch, noise.post).state, noise).losses["policy"].mean()
        grads.append(torch.autograd.grad(loss, agent.actor.heads[0].mean.weight)[0])
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


def test_the_fast_critic_bootstraps() -> None:
    """Bootstrapping critic: the slow critic appears in no return, only as a pull on the fast one."""
    agent = tiny()
    agent.critic.out.weight.data.normal_()
    batch, noise = make_batch(agent), noise_for(agent)
    before = agent.loss(batch, noise)
    for p in agent.slow_critic.parameters():
        p.data.normal_()
    after = agent.loss(batch, noise)
    assert torch.equal(before.dream.returns, after.dream.returns)
    assert torch.equal(before.replay_returns, after.replay_returns)
    assert not torch.allclose(before.terms["value"], after.terms["value"])


def test_slow_critic_follows_the_fast_one() -> None:
    agent = tiny()
    agent.critic.out.bias.data.fill_(1.0)
    agent.update_slow_critic()
    torch.testing.assert_close(agent.slow_critic.out.bias, torch.full((21,), 0.02))


def test_who_is_trained_by_what() -> None:
    """Gradient routing: actor and critic losses never reach the model; reward and replay-value losses do."""
    agent = tiny()
    agent.critic.out.weight.data.normal_(), agent.reward.out.weight.data.normal_()
    loss = agent.loss(make_batch(agent), noise_for(agent))
    model = [*agent.encoder.parameters(), *agent.rssm.parameters(), *agent.decoder.parameters()]

    def reaches(term: str, params: list[torch.nn.Parameter]) -> bool:
        grads = torch.autograd.grad(loss.terms[term].mean(), params, allow_unused=True, retain_graph=True)
        return any(g is not None and bool(g.any()) for g in grads)

    heads = [*agent.reward.parameters(), *agent.cont.parameters()]
    actor, critic = list(agent.actor.parameters()), list(agent.critic.parameters())
    assert not reaches("policy", [*model, *heads, *critic]) and reaches("policy", actor)
    assert not reaches("value", [*model, *heads, *actor]) and reaches("value", critic)
    assert reaches("replay_value", model) and reaches("reward", model) and not reaches("replay_value", actor)


def test_continuous_actions_are_scored_unclipped() -> None:
    """Unclipped action: the dream's stored action may leave [-1, 1] and is the one whose probability is used."""
    agent = tiny()
    noise = noise_for(agent)
    assert noise.action is not None
    noise.action["action"][:] = 3.0
    dream = agent.loss(make_batch(agent), noise).dream
    assert dream.action["action"].min() > 1.0
    dist = dream.policy.dists["action"]
    torch.testing.assert_close(dist.log_prob(dream.action["action"]), -4.5 - dist.std.log() - 0.9189385)


def test_policy_unimix_is_an_option() -> None:
    """Policy unimix: off as in the official code, 1 % when asked for."""
    feat = torch.zeros(1, 32)
    for unimix, expected in ((0.0, 0.0), (0.01, 0.0025)):
        agent = tiny(act=spaces.Discrete(4), policy_unimix=unimix)
        agent.actor.heads[0].logits.bias.data.copy_(torch.tensor([50.0, 0, 0, 0]))
        assert agent.actor(feat).dists["action"].probs.min().item() == pytest.approx(expected, abs=1e-6)


def test_mean_and_std_have_layers_of_their_own() -> None:
    """Layers of mean and deviation."""
    names = [name for name, _ in tiny().actor.heads.named_parameters()]
    assert names == ["0.mean.weight", "0.mean.bias", "0.std.weight", "0.std.bias"]


def test_bfloat16_products_only() -> None:
    """Mixed precision.

    Every loss term agrees with float32, latents stay exactly 0/1, gradients and parameters float32.
    """
    reference, agent = tiny(), tiny(precision="bf16")
    agent.load_state_dict(reference.state_dict())
    batch, noise = make_batch(agent), noise_for(agent)
    wide, narrow = reference.loss(batch, noise), agent.loss(batch, noise)
    for key, term in narrow.terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.mean(), wide.terms[key].mean(), rtol=0.05, atol=0.02)
    stoch = narrow.world.state.stoch
    assert ((stoch == 0) | (stoch == 1)).all() and narrow.world.state.deter.dtype == torch.float32
    wide.total.backward(), narrow.total.backward()
    for (name, p), q in zip(reference.named_parameters(), agent.parameters()):
        if p.grad is not None:
            assert q.grad is not None and q.grad.dtype == torch.float32, name
            if p.grad.norm() > 1e-3:
                assert torch.cosine_similarity(p.grad.flatten(), q.grad.flatten(), 0) > 0.9, name


def test_official_names_are_unique_and_missing_ones_are_named() -> None:
    agent = tiny(VECTOR | {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    names = official_names(agent)
    assert len(names) == len(list(agent.parameters()))
    with pytest.raises(ValueError, match="is missing"):
        load_official(agent, {})
    with pytest.raises(ValueError, match="shape"):
        load_official(agent, {path: np.zeros(3) for path in names})


def test_state_dict_holds_all_a_resume_needs() -> None:
    agent, twin = tiny(), tiny()
    batch = make_batch(agent)
    agent.update(batch, noise_for(agent))
    twin.load_state_dict(agent.state_dict())
    noise = noise_for(agent)
    agent.update(batch, noise), twin.update(batch, noise)
    assert all(torch.equal(a, b) for a, b in zip(agent.parameters(), twin.parameters()))
    assert torch.equal(agent.return_norm.hi, twin.return_norm.hi)


def test_state_flattens_time_into_batch() -> None:
    state = State(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, 6)).flatten()
    assert state.deter.shape == (6, 4) and state.stoch.shape == (6, 5, 6)
