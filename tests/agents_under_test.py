"""Every agent at its smallest, for the tests that all of them must pass."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import AGENTS, Agent, agent_spec

WORLD = dict(deter=16, hidden=8, stoch=4, units=8, depth=2, encoder_layers=1, decoder_layers=1, reward_layers=1)
TINY: dict[str, dict[str, Any]] = {
    "planet": WORLD | dict(candidates=6, elites=2, iterations=2, horizon=3, free_nats=0.1),
    "dreamer_v1": WORLD | dict(imag_length=4, actor_layers=1, critic_layers=1, free_nats=0.1),
    "dreamer_v2": WORLD | dict(imag_length=4, actor_layers=1, critic_layers=1, classes=4),
    "dreamer_v3": dict(deter=16, hidden=8, stoch=4, classes=4, blocks=2, units=8, depth=2, bins=21, imag_length=3,
                      precision="fp32"),
}  # fmt: skip
OLDER = ("planet", "dreamer_v1", "dreamer_v2")
VECTOR = {"pos": spaces.Box(-np.inf, np.inf, (3,), np.float32), "height": spaces.Box(-np.inf, np.inf, (), np.float32)}
IMAGE = {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}
BOX = spaces.Box(-1, 1, (2,), np.float32)


def tiny(name: str, obs: Mapping[str, spaces.Space] | None = None, act: Any = BOX, **changes: Any) -> Any:
    torch.manual_seed(0)
    spec = agent_spec(name)
    return spec.agent(obs or VECTOR, act, spec.config(**(TINY[name] | changes)))


def draw(space: spaces.Space, *batch: int) -> Tensor:
    shape = (*batch, *(space.shape or ()))
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), shape)
    if isinstance(space, spaces.MultiDiscrete):
        return (torch.rand(shape) * torch.as_tensor(space.nvec)).long()
    return torch.randint(256, shape, dtype=torch.uint8) if space.dtype == np.uint8 else torch.randn(shape)


def make_batch(agent: Agent, steps: int = 5, batch: int = 3) -> dict[str, Tensor]:
    """Random replay rows [1+T, B, ...] without an end in them."""
    rows = (steps + 1, batch)
    flags = {key: torch.zeros(rows, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    values = {key: draw(space, *rows) for key, space in (agent.obs_space | agent.act_space).items()}
    latents = {}
    if agent.latent_keys:
        c = agent.config
        latents = {"deter": torch.randn(*rows, c.deter).tanh(),
                   "stoch": torch.randint(c.classes, (*rows, c.stoch)).byte()}  # fmt: skip
    return values | flags | latents | {"reward": torch.randn(rows), "index": torch.arange(rows[0] * batch).view(rows)}


def names() -> list[str]:
    """All agents that learn from replay."""
    return [name for name in AGENTS if name in TINY]
