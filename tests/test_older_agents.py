"""PlaNet, Dreamer V1 and DreamerV2 as wholes: returns, weights, who is trained by what, and alignment of the data."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import agent_spec
from fastwm.agents.dreamer import arrival_weights, lambda_targets
from fastwm.agents.results import Noise
from fastwm.nn.distributions import normal_kl
from fastwm.nn.gru_rssm import GRUState
from fastwm.runner.config import TrainConfig, preset_blocks, with_presets
from tests.agents_under_test import OLDER, make_batch, tiny

DREAMERS = ("dreamer_v1", "dreamer_v2")


def dream_of(agent: Any, batch: dict[str, Tensor]) -> Any:
    """The behaviour on a batch, the same noise every time."""
    torch.manual_seed(7)
    rows, prev_action = agent.led_to(batch)
    state = agent.model_loss(rows, prev_action).world.state
    terminal = (rows["is_terminal"],) if hasattr(agent, "slow_critic") else ()
    return agent.behaviour(state, *terminal, Noise())


# Returns


def test_a_states_value_holds_its_own_reward() -> None:
    """Index of the return: R_k uses r_k and d_k, unlike DreamerV3's."""
    reward, value = torch.tensor([9.0, 1, 2, 3, 4]), torch.tensor([0.5, 1, 1.5, 2, 2.5])
    discount = torch.tensor([0.9, 0.9, 0.9, 0.5, 0.9])
    v2 = lambda_targets(reward, discount, value, 0.95)
    torch.testing.assert_close(v2, torch.tensor([14.14191684, 5.96130625, 5.72375, 4.25]))
    torch.testing.assert_close(arrival_weights(discount)[:-1], torch.tensor([1, 0.9, 0.81, 0.729]))
    constant = torch.full((5,), 0.99)
    v1 = lambda_targets(reward, constant, value, 0.95)
    torch.testing.assert_close(v1, torch.tensor([16.47118994, 7.89121737, 7.2482375, 5.475]))
    torch.testing.assert_close(arrival_weights(constant)[:-1], torch.tensor([1, 0.99, 0.9801, 0.970299]))


def test_horizons() -> None:
    """Horizon: H actions; V1 keeps H states and H-1 returns, V2 H+1 states and H targets."""
    for name, states in (("dreamer_v1", 4), ("dreamer_v2", 5)):
        agent = tiny(name)
        dream = dream_of(agent, make_batch(agent))
        assert dream.action.shape == (4, 15, 2) and dream.state.deter.shape == (states, 15, 16)
        assert dream.returns.shape == (states - 1, 15)


def test_v2_the_start_states_reward_counts() -> None:
    """Index of the return."""
    agent = tiny("dreamer_v2")
    batch = make_batch(agent)
    before = dream_of(agent, batch)
    agent.world.reward.out.bias.data += 1
    after = dream_of(agent, batch)
    assert (after.returns - before.returns).min() > 0.9


def test_weights_and_the_continuation() -> None:
    """Loss weights, Double discount, Continuation as a probability.

    A leading one, then what the head says, its discount inside, as a probability; V2 knows where the start state is
    terminal.
    """
    for name in DREAMERS:
        agent = tiny(name, predict_cont=True)
        agent.world.cont.out.weight.data.zero_()
        batch = make_batch(agent)
        batch["is_terminal"][3, 1] = True
        dream = dream_of(agent, batch)
        assert (dream.weight[0] == 1).all()
        if name == "dreamer_v1":
            assert dream.action.shape[1] == 4 * 3  # the last states may be ends
            torch.testing.assert_close(dream.weight[2], torch.full((12,), 0.25))
        else:
            first = dream.discount[0].detach().view(5, 3)
            assert first[2, 1] == 0 and first[2, 0] == pytest.approx(0.99)
            assert (dream.weight.view(5, 5, 3)[1:, 2, 1] == 0).all()
            torch.testing.assert_close(dream.weight[3].view(5, 3)[0], torch.full((3,), 0.99 * 0.25))


def test_which_presets_learn_the_continuation() -> None:
    """Discount head: V2 on Atari learns gamma (1 - terminal); on DMC there is no head and the discount is constant."""
    for preset, head in (("atari", True), ("dmc_vision", False)):
        config = with_presets(TrainConfig(agent_spec("dreamer_v2").config()), "dreamer_v2", [preset]).agent
        assert config.predict_cont is head
    agent = tiny("dreamer_v2")
    assert agent.world.cont is None
    assert (agent.world.discount_at(agent.world.rssm.initial(2)) == 0.99).all()
    target = tiny("dreamer_v2", predict_cont=True).world.discount_after(torch.tensor([False, True]))
    torch.testing.assert_close(target, torch.tensor([0.99, 0.0]))


# Who is trained by what


def test_which_critic_makes_the_targets() -> None:
    """Bootstrapping critic: V1 has one; V2's targets come from the slow one, and the fast one is in none."""
    v1, v2 = tiny("dreamer_v1"), tiny("dreamer_v2")
    batch = make_batch(v2)
    before = dream_of(v2, batch)
    for p in v2.critic.parameters():
        p.data.normal_()
    after = dream_of(v2, batch)
    assert torch.equal(before.returns, after.returns) and torch.equal(before.losses["actor"], after.losses["actor"])
    for p in v2.slow_critic.parameters():
        p.data.normal_()
    assert not torch.allclose(before.returns, dream_of(v2, batch).returns)
    assert not hasattr(v1, "slow_critic")


def test_the_slow_critic_is_copied() -> None:
    """Bootstrapping critic: wholly, at the first update and every `slow_every` ones."""
    agent = tiny("dreamer_v2", slow_every=3)
    batch = make_batch(agent)
    copied = []
    for _ in range(7):
        agent.update(batch)
        pairs = zip(agent.critic.parameters(), agent.slow_critic.parameters())
        copied.append(all(torch.equal(fast, slow) for fast, slow in pairs))
    assert copied == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("name", DREAMERS)
def test_every_optimiser_moves_its_own(name: str) -> None:
    """Gradient routing: the actor's gradient passes through the model and the values, and changes neither."""
    agent = tiny(name)
    batch = make_batch(agent)
    dream = dream_of(agent, batch)
    agent.actor_optimizer.backward(dream.losses["actor"])
    assert any(p.grad is not None and p.grad.any() for p in agent.actor.parameters())
    for part in (agent.world, agent.critic):
        assert all(p.grad is None for p in part.parameters())
    agent.critic_optimizer.backward(dream.losses["critic"])
    assert any(p.grad.any() for p in agent.critic.parameters())
    assert all(p.grad is None for p in agent.world.parameters())
    if name == "dreamer_v2":
        assert not any(p.requires_grad for p in agent.slow_critic.parameters())


@pytest.mark.parametrize("name", OLDER)
def test_bfloat16_products_only(name: str) -> None:
    """Mixed precision: every loss agrees with float32; gradients are float32, and those of all parts are there."""
    reference, agent = tiny(name), tiny(name, precision="bf16")
    agent.load_state_dict(reference.state_dict())
    batch, losses = make_batch(agent), []
    for each in (reference, agent):
        torch.manual_seed(3)
        losses.append({key: value for key, value in each.update(batch).items() if key.startswith("loss")})
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)
    for (key, p), q in zip(reference.named_parameters(), agent.named_parameters()):
        if p.grad is not None:
            assert q[1].grad is not None and q[1].grad.dtype == torch.float32
            if p.grad.norm() > 1e-3:
                assert torch.cosine_similarity(p.grad.flatten(), q[1].grad.flatten(), 0) > 0.9, key
    action, state = agent.act({**{key: x[0] for key, x in batch.items()}, "is_first": torch.ones(3)})
    assert state["deter"].dtype == torch.float32 and np.isfinite(np.asarray(action)).all()


def test_v2_chooses_its_gradient_by_the_action_space() -> None:
    assert tiny("dreamer_v2").actor_grad == "dynamics"
    agent = tiny("dreamer_v2", act=spaces.Discrete(3))
    assert agent.actor_grad == "reinforce"
    assert not dream_of(agent, make_batch(agent)).returns.requires_grad


def test_v1_discrete_actions_pass_the_gradient_straight_through() -> None:
    """Straight-through gradient."""
    agent = tiny("dreamer_v1", act=spaces.Discrete(3))
    dream = dream_of(agent, make_batch(agent))
    assert ((dream.action == 0) | (dream.action == 1)).all()
    assert agent.actor_optimizer.backward(dream.losses["actor"]) > 0


# Data


@pytest.mark.parametrize("name", OLDER)
def test_the_action_at_a_row_leads_to_the_next(name: str) -> None:
    """Action alignment: replay holds the action chosen at a row; the model consumes the one that led there."""
    agent = tiny(name)
    batch = make_batch(agent)

    def deter() -> Tensor:
        torch.manual_seed(1)
        return agent.world(*agent.led_to(batch)).state.deter

    before = deter()
    batch["action"] = batch["action"].clone()
    batch["action"][3] += 0.3
    assert (before != deter()).flatten(1).any(1).tolist() == [False, False, False, True, True]


def test_a_task_that_only_alignment_solves() -> None:
    """Action alignment.

    Where the observation is the action before, the reconstruction becomes exact; one row off it does not.
    """
    obs, act = {"seen": spaces.Box(-1, 1, (1,), np.float32)}, spaces.Box(-1, 1, (1,), np.float32)
    batch = make_batch(tiny("planet", obs, act), 12, 16)
    batch["action"] = batch["action"].sign() * 0.8

    def open_loop_error(shift: int) -> float:
        agent = tiny("planet", obs, act, lr=1e-2, free_nats=0.0, rec_scale=20.0)
        seen = batch["action"].roll(shift, 0)
        rows = batch | {"seen": seen, "reward": torch.zeros_like(batch["reward"])}
        for _ in range(120):
            agent.update(rows)
        return float((agent.open_loop(rows, 2)["seen"][2:] - seen[3:]).square().mean())

    assert open_loop_error(1) < 0.1 < 0.4 < open_loop_error(0)


@pytest.mark.parametrize("name", OLDER)
def test_windows_start_with_no_memory(name: str) -> None:
    """Of the row before a window's first trained one nothing counts but the action, and in V2 not even that."""

    def model_loss(batch: dict[str, Tensor]) -> Tensor:
        agent = tiny(name)
        torch.manual_seed(1)
        return agent.update(batch)["loss/reward"]

    batch = make_batch(tiny(name))
    loss = model_loss(batch)
    row = torch.zeros(6, 1, dtype=torch.bool)
    row[0] = True
    assert torch.equal(loss, model_loss(batch | {"height": batch["height"] + row}))
    other_action = model_loss(batch | {"action": batch["action"] + row[..., None]})
    assert torch.equal(loss, other_action) == (name == "dreamer_v2")


def test_only_the_posterior_is_sampled() -> None:
    """Prior on the filtered path: it is read off the posterior's path; T draws a sequence and no more."""
    agent = tiny("dreamer_v2")
    batch = make_batch(agent)
    torch.manual_seed(3)
    agent.world(*agent.led_to(batch))
    left = torch.rand(1)
    torch.manual_seed(3)
    torch.rand(5, 3, 4)
    assert torch.equal(left, torch.rand(1))


# Overshooting


def test_overshooting_by_a_double_loop() -> None:
    """Overshooting: from every state, two to D steps ahead, nothing past the window's or the episode's end."""
    torch.manual_seed(0)
    agent = tiny("planet", overshooting_distance=3, overshooting_scale=1.0)
    batch = make_batch(agent, 4, 2)
    batch["is_first"][3, 1] = True  # trained row 2
    rows, prev_action = agent.led_to(batch)
    world = agent.world(rows, prev_action)
    noise = torch.zeros(4, 4 * 2, 4)
    term = agent.overshooting(world, prev_action, rows["is_first"], noise)

    total = 0.0
    for b in range(2):
        for t in range(4):
            fresh = t == 0 or bool(rows["is_first"][t, b])
            state = GRUState(*(torch.zeros_like(x[0, b]) if fresh else x[t - 1, b] for x in world.state))
            action = prev_action[t, b] * (not rows["is_first"][t, b])
            for d in range(4):
                if t + d >= 4 or (d and rows["is_first"][t + d, b]):
                    break
                action = prev_action[t + d, b] if d else action
                state, stats = agent.world.rssm.open_loop(
                    GRUState(*(x.reshape(1, -1) for x in state)), action[None, None], torch.zeros(1, 1, 4)
                )
                kl = normal_kl(world.post_stats[t + d, b], stats[0, 0])
                total += (kl - 0.1).clamp(min=0).item() * (1 <= d <= 2)
    assert term.item() == pytest.approx(total / (4 * 2 * 2), rel=1e-4)
    metrics = agent.update(batch)
    assert "loss/overshooting" in metrics


def test_the_official_schedules() -> None:
    """PlaNet: 100 updates an episode; V1: 100 every 500 decisions; V2: one every 16 on Atari, every 5 on DMC."""
    for name, preset, every, updates in (
        ("planet", "dmc_vision", 126, 100),
        ("dreamer_v1", "dmc_vision", 500, 100),
        ("dreamer_v2", "atari", 16, 1),
        ("dreamer_v2", "dmc_vision", 5, 1),
    ):
        c = with_presets(TrainConfig(agent_spec(name).config()), name, [preset])
        assert c.update_every == every
        assert every * c.train_ratio / (c.batch_size * c.batch_length) == pytest.approx(updates, rel=1e-3)
        assert preset in preset_blocks(name)
