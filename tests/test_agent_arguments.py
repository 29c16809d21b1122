"""What `act` and `update` are given: keys, rows, shapes, dtypes, modes, and networks that nothing would train."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastwm.agents import AGENTS, Agent
from fastwm.errors import FastwmError
from tests.agents_under_test import IMAGE, VECTOR, draw, make_batch, names, tiny
from tests.test_world_models_stages import tiny as tiny_world_models

ALL = list(AGENTS)


def acting(name: str, obs: dict[str, spaces.Space] | None = None) -> Agent:
    return tiny_world_models() if name == "world_models" else tiny(name, obs or VECTOR)


def observations(agent: Agent, rows: int = 3) -> dict[str, Any]:
    obs = {key: draw(space, rows).numpy() for key, space in agent.obs_space.items()}
    return obs | {"is_first": np.zeros(rows, bool)}


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_float_images_are_refused(name: str) -> None:
    """As 0..255 they would be nearly black, or, as numbers of another scale, all white."""
    agent = acting(name, IMAGE)
    obs = observations(agent)
    with pytest.raises(ValueError, match="act: the image 'image' must be uint8, 0 to 255, got float32"):
        agent.act(obs | {"image": obs["image"].astype(np.float32) / 255})
    agent.act({key: torch.as_tensor(value) for key, value in obs.items()})


def test_a_state_of_other_rows_is_refused(name: str) -> None:
    agent = acting(name)
    _, one = agent.act(observations(agent, 1))
    with pytest.raises(ValueError, match="has 1 rows, the observations have 3"):
        agent.act(observations(agent), one)
    key = next(iter(one))
    with pytest.raises(ValueError, match=f"the state lacks {key}"):
        agent.act(observations(agent, 1), {other: x for other, x in one.items() if other != key})


@pytest.mark.parametrize("mode", ["test", "Train", "", None])
def test_unknown_modes_are_refused(name: str, mode: Any) -> None:
    agent = acting(name)
    with pytest.raises(ValueError, match=f"mode must be one of 'train', 'eval', 'random', got {mode!r}"):
        agent.act(observations(agent), mode=mode)


def test_missing_keys_and_wrong_shapes_are_named_and_other_keys_are_ignored(name: str) -> None:
    agent = acting(name)
    obs = observations(agent)
    key = next(iter(agent.obs_space))
    for lost in (key, "is_first"):
        with pytest.raises(ValueError, match=f"the observations lack {lost}; there are: "):
            agent.act({other: value for other, value in obs.items() if other != lost})
    shape = list(obs[key].shape)
    with pytest.raises(ValueError, match=rf"expected {key} \[3.*\] beside is_first \[3\], got \[2"):
        agent.act(obs | {key: obs[key][:2]})
    with pytest.raises(ValueError, match=rf"expected {key} \[{str(shape)[1:-1]}\] .* got \[{str(shape[1:])[1:-1]}\]"):
        agent.act(obs | {key: obs[key][0]})
    with pytest.raises(ValueError, match=r"is_first must be \[B\], one flag a row, got \[\]"):
        agent.act(obs | {"is_first": np.bool_(True)})
    torch.manual_seed(0)
    action, _ = agent.act(obs)
    torch.manual_seed(0)
    more, _ = agent.act(obs | {"reward": np.zeros(3, np.float32), "is_last": np.zeros(3, bool)})
    assert torch.equal(action, more)


@pytest.mark.parametrize("learner", names())
def test_classes_out_of_range_are_named(learner: str) -> None:
    agent = tiny(learner, {"mode": spaces.Discrete(3), "cards": spaces.MultiDiscrete([2, 4])})
    obs = observations(agent)
    with pytest.raises(ValueError, match=r"'mode' of row 1 is 3, but its space is Discrete\(3\)"):
        agent.act(obs | {"mode": np.array([0, 3, 1])})
    with pytest.raises(ValueError, match=r"'cards' of row 0 at \[0\] is 2, but its space is MultiDiscrete"):
        agent.act(obs | {"cards": torch.tensor([[2, 3], [0, 0], [1, 1]])})
    with pytest.raises(ValueError, match="'mode' holds classes and must be of integers, got float32"):
        agent.act(obs | {"mode": np.zeros(3, np.float32)})


@pytest.mark.parametrize("learner", names())
def test_a_batch_is_checked(learner: str) -> None:
    agent = tiny(learner, VECTOR | IMAGE)
    batch = make_batch(agent, 2, 3)

    def refused(changed: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=f"update: {message}"):
            agent.update(changed)

    refused({key: x for key, x in batch.items() if key != "pos"}, "the batch lacks pos; there are: ")
    refused(batch | {"image": batch["image"] / 255}, "the image 'image' must be uint8, 0 to 255, got float32")
    refused(batch | {"pos": batch["pos"][:1]}, r"expected pos \[3, 3, 3\] beside reward \[3, 3\], got \[1, 3, 3\]")
    refused({key: x[:1] for key, x in batch.items()}, r"expected reward time-major \[1\+T, B\] with T of at least 1")
    batch = make_batch(agent, 4, 3)
    swapped = batch | {"pos": batch["pos"].transpose(0, 1)}
    refused(swapped, r"expected pos \[5, 3, 3\] .* got \[3, 5, 3\]; the batch must be time-major")


# Networks of one's own


class Sum(nn.Module):
    """An encoder that someone wrote."""

    def __init__(self, width: int):
        super().__init__()
        self.out_dim, self.linear = width, nn.Linear(4, width)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.linear(torch.cat([obs["pos"], obs["height"][..., None]], -1))


def replace_encoder(agent: Any) -> tuple[nn.Module, str]:
    owner, prefix = (agent, "") if hasattr(agent, "encoder") else (agent.world, "world.")
    owner.encoder = Sum(owner.encoder.out_dim)
    return owner.encoder, f"{prefix}encoder.linear.weight"


@pytest.mark.parametrize("learner", names())
def test_a_replaced_network_is_trained_or_refused(learner: str) -> None:
    agent = tiny(learner, **({"warmup": 0} if learner == "dreamer_v3" else {}))
    batch = make_batch(agent)
    agent.update(batch)
    encoder, weight = replace_encoder(agent)
    with pytest.raises(FastwmError, match=rf"no optimiser holds {weight} and 1 others: call reset_optimizers\(\)"):
        agent.update(batch)
    before = encoder.get_parameter("linear.weight").detach().clone()
    agent.reset_optimizers()
    agent.update(batch)
    assert not torch.equal(encoder.get_parameter("linear.weight"), before)


@pytest.mark.parametrize("learner", names())
def test_a_frozen_network_stays_as_it_is(learner: str) -> None:
    agent = tiny(learner, **({"warmup": 0} if learner == "dreamer_v3" else {}))
    encoder, _ = replace_encoder(agent)
    encoder.requires_grad_(False)
    own = agent.reward if hasattr(agent, "reward") else agent.world.reward
    own.out.requires_grad_(False)  # one that an optimiser holds
    before = [p.detach().clone() for p in (*encoder.parameters(), *own.out.parameters())]
    agent.update(make_batch(agent))
    assert all(torch.equal(p, q) for p, q in zip(before, (*encoder.parameters(), *own.out.parameters())))


# Precision


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_converted_agents_are_told_the_dtype_wanted(name: str, convert: str) -> None:
    agent = getattr(acting(name), convert)()
    message = r"parameters are torch.\w+, but must be torch.float32: call agent.float\(\); .* under torch.autocast"
    with pytest.raises(TypeError, match=message):
        agent.act(observations(agent))
    if name != "world_models":
        with pytest.raises(TypeError, match=message):
            agent.update(make_batch(agent))
    agent.float().act(observations(agent))


def test_another_default_dtype_is_told(name: str) -> None:
    agent = acting(name)
    obs = observations(agent)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TypeError, match=r"torch's default dtype must be torch.float32, but is torch.float64"):
            agent.act(obs)
        with pytest.raises(TypeError, match="the parameters are torch.float64, but must be torch.float32"):
            acting(name).act(obs)
    finally:
        torch.set_default_dtype(torch.float32)


def test_stored_latents_cannot_wrap() -> None:
    """Replay keeps class indices as uint8."""
    with pytest.raises(FastwmError, match="classes must be at least 1 and at most 256, got 257"):
        tiny("dreamer_v3", classes=257)
