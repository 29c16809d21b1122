"""What is not finite is named where it appears, and changes nothing: all agents, on a CPU and as on a GPU."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastwm.agents import Agent
from fastwm.agents.finite import FiniteCheck
from fastwm.agents.world_models.stage import Learner
from fastwm.errors import FastwmError
from fastwm.optim import KerasAdam, LaProp
from tests.agents_under_test import make_batch, names, tiny
from tests.test_agent_arguments import acting, observations

PARAMETERS = {
    "planet": "world.rssm.post.linear.weight",
    "dreamer_v1": "actor.out.bias",
    "dreamer_v2": "critic.mlp.0.linear.weight",
    "dreamer_v3": "decoder.heads.0.weight",
}


def tensors(agent: nn.Module) -> list[Tensor]:
    """All that an update may change."""
    state = deepcopy(agent.state_dict(keep_vars=False))
    return [x for x in pytree.tree_leaves(state) if isinstance(x, Tensor)]


def numbers(agent: Agent) -> list[int]:
    groups = [group for optimizer in agent.optimizers().values() for group in optimizer.param_groups]
    return [int(group[key]) for group in groups for key in ("step", "steps") if key in group]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(x, y) for x, y in zip(before, after))


@pytest.fixture(params=["cpu", "as on a gpu"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a finding is raised at once; else it waits for `check_finite`, as it must on a GPU."""
    if request.param == "cpu":
        return True
    monkeypatch.setattr(FiniteCheck, "read_at_once", staticmethod(lambda device: False))
    return False


def trained(name: str) -> Any:
    options = {"warmup": 0, "lr": 1e-2} if name == "dreamer_v3" else {}
    agent = tiny(name, **options)
    agent.update(make_batch(agent))
    return agent


def fails(agent: Agent, batch: dict[str, Tensor], at_once: bool, message: str) -> None:
    """The update raises, at once or when it is asked, and has changed nothing."""
    written: list[dict[str, Tensor]] = []
    before, counts = tensors(agent), numbers(agent)
    if at_once:
        with pytest.raises(FastwmError, match=message):
            agent.update(batch, write_back=lambda index, latents: written.append(latents))
    else:
        agent.update(batch, write_back=lambda index, latents: written.append(latents))
        with pytest.raises(FastwmError, match=f"update 2 of this process: {message}"):
            agent.check_finite()
    agent.check_finite()  # forgotten once told
    for latents in written:
        assert all(torch.equal(x, batch[key][1:].to(x.dtype)) for key, x in latents.items())
    assert numbers(agent) == counts
    assert same(before, tensors(agent))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("key", ["reward", "pos"])
def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(name: str, key: str, at_once: bool) -> None:
    if name == "dreamer_v3" and key == "reward":
        key = "pos"
    agent = trained(name)
    batch = make_batch(agent)
    batch[key][2, 1] = float("nan")
    fails(agent, batch, at_once, f"the loss '({'reward' if key == 'reward' else 'kl|dyn|rec/pos'})' is not finite")
    agent.update(make_batch(agent))  # goes on
    agent.check_finite()


@pytest.mark.parametrize("name", names())
def test_a_reward_too_large_for_float32_is_named(name: str, at_once: bool) -> None:
    agent = trained(name)
    batch = make_batch(agent)
    batch["reward"][2, 1] = 1e30
    if name == "dreamer_v3":  # symlog: no harm
        agent.update(batch)
        agent.check_finite()
    else:
        fails(agent, batch, at_once, r"the loss 'reward' is not finite: the rewards, or their predictions")


def update_and_check(agent: Agent) -> None:
    agent.update(make_batch(agent))
    agent.check_finite()


@pytest.mark.parametrize("name", names())
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(name: str, at_once: bool) -> None:
    agent = trained(name)
    hook = agent.get_parameter(PARAMETERS[name]).register_hook(lambda grad: grad * float("nan"))
    if name == "dreamer_v2":  # its model takes its step first, as in the official code
        behaviour = agent.actor, agent.critic, agent.slow_critic
        before = [tensors(module) for module in behaviour]
        with pytest.raises(FastwmError, match=f"the gradient of {PARAMETERS[name]} is not finite"):
            update_and_check(agent)
        assert all(same(old, tensors(module)) for old, module in zip(before, behaviour))
    else:
        fails(agent, make_batch(agent), at_once, f"the gradient of {PARAMETERS[name]} is not finite")
    hook.remove()
    agent.update(make_batch(agent))
    agent.check_finite()


@pytest.mark.parametrize("name", names())
def test_good_updates_are_the_same_bits_with_a_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (True, False):
        monkeypatch.setattr(FiniteCheck, "read_at_once", staticmethod(lambda device, answer=at_once: answer))
        agent = trained(name)
        batch = make_batch(agent)
        torch.manual_seed(4)
        agent.update(batch)
        results.append({key: p.detach().clone() for key, p in agent.named_parameters()})
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))


def test_the_networks_of_world_models(at_once: bool) -> None:
    """The learner of V and M: Adam's moments and steps stay too, and a later step is as if nothing had been."""
    model, twin = Halves(), Halves()
    learner, plain = Learner(model, 0.1), Learner(twin, 0.1)

    def step(of: Learner, factor: float) -> None:
        m: Any = of.model
        good, bad = m.a.square().sum(), (m.b * factor).sum()
        of.minimize({"good": good, "bad": bad}, good + bad, clip=0.5)

    for each in (learner, plain):
        step(each, 1.0)
    before = deepcopy(learner.state_dict())
    if at_once:
        with pytest.raises(FastwmError, match="the loss 'bad' is not finite"):
            step(learner, float("nan"))
    else:
        step(learner, float("nan"))
        with pytest.raises(FastwmError, match="update 2 of this process: the loss 'bad'"):
            learner.check_finite()
    after = learner.state_dict()
    for x, y in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y
    learner.load_state_dict(before)
    for each in (learner, plain):
        step(each, 1.0)
    assert same(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("optimizer", [LaProp, lambda p: KerasAdam(p, 0.1, 1e-5, 1.0, 1e-3)], ids=["laprop", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimiser_leaves_all_as_it_is_where_apply_is_false(optimizer: Any, dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype)), nn.Parameter(torch.ones(3, 2, dtype=dtype))]
    held = optimizer(params)
    for step, apply in enumerate((False, True, False)):
        before = [p.detach().clone() for p in params], deepcopy(held.state_dict()["state"])
        for p in params:
            p.grad = torch.full_like(p, 0.5 if apply else float("nan"))
        held.step(apply=torch.tensor(apply))
        unchanged = same(before[0], params)
        assert unchanged is not (apply and optimizer is not LaProp)  # LaProp's first step is its warm-up's, of no size
        if step and not apply:
            torch.testing.assert_close(held.state_dict()["state"], before[1], rtol=0, atol=0)
    group = held.param_groups[0]
    assert int(group["step" if "step" in group else "steps"]) == 1


# Acting


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_acting_names_the_observation_that_is_not_finite(name: str, kind: Any, value: float) -> None:
    agent = acting(name)
    obs = {key: kind(x) for key, x in observations(agent).items()}
    obs["pos"][1, 2] = value
    with pytest.raises(FastwmError, match=r"observation 'pos' of row 1 at \[2\] is not finite \(-?(nan|inf)"):
        agent.act(obs)
    obs["pos"][1, 2], obs["height"][2] = 0, value
    with pytest.raises(FastwmError, match=r"observation 'height' of row 2 is not finite"):
        agent.act(obs)


def test_an_update_under_a_graph_needs_no_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of findings is made at the first update and filled in place, as a graph's replays need it."""
    monkeypatch.setattr(FiniteCheck, "read_at_once", staticmethod(lambda device: False))
    agent = trained("dreamer_v3")
    (finding,) = agent.finite.findings.values()
    agent.update(make_batch(agent))
    assert [finding] == list(agent.finite.findings.values()) and finding.record.tolist() == [2, 0, 0]
