"""Crafter (Hafner 2021), the survival world, as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..errors import FastwmError
from .envpool import Seed
from .gym import make_from
from .vec import UnknownEnv, VecEnv


class Crafter(gymnasium.Env):
    """Images [size, size, 3], 17 actions; an episode ends by death, or by the time limit of 10,000 steps."""

    def __init__(self, size: int, reward: bool) -> None:
        self.size, self.reward = size, reward
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(17)
        self._world = self._make(None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self._world = self._make(seed)
        return self._world.reset(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, done, info = self._world.step(int(action))
        dead = info["discount"] == 0
        return obs, float(reward), done and dead, done and not dead, info

    def _make(self, seed: int | None) -> Any:
        try:
            import crafter
        except ImportError as error:
            raise FastwmError("Crafter is not installed: pip install 'fastwm[crafter]'") from error
        return crafter.Env(size=(self.size, self.size), reward=self.reward, seed=seed)


def make_crafter(name: str, *, num_envs: int, seed: Seed, size: int | None, repeat: int, **options: Any) -> VecEnv:
    """`crafter:reward` or `crafter:noreward`."""
    if name not in ("reward", "noreward"):
        raise UnknownEnv(name)
    return make_from(
        lambda: Crafter(size or 64, name == "reward"),
        num_envs=num_envs, seed=seed, size=size, repeat=repeat, **options,
    )  # fmt: skip
