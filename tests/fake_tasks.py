"""Tiny stand-ins for TakeCover and CarRacing: the same spaces, no engine."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Cover(gymnasium.Env):
    """A white block falls; who stands under it when it lands is hit. +1 a step."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space: spaces.Space = spaces.Discrete(3)
    limit = 40

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.t = 4, 0
        self.block = int(self.np_random.integers(8))
        return self.image(), {}

    def image(self) -> np.ndarray:
        image = np.full((64, 64, 3), 60, np.uint8)
        image[-8:, 8 * self.x : 8 * self.x + 8] = (0, 200, 0)
        row = self.t % 7 * 8
        image[row : row + 8, 8 * self.block : 8 * self.block + 8] = 255
        return image

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x = int(np.clip(self.x + (0, 1, -1)[int(action)], 0, 7))
        self.t += 1
        dead = False
        if self.t % 7 == 0:
            dead = abs(self.block - self.x) <= 1
            self.block = int(self.np_random.integers(8))
        return self.image(), 1.0, dead, self.t >= self.limit, {}


class Car(gymnasium.Env):
    """Gas is rewarded; a green bar shows how far the car has come."""

    observation_space = spaces.Box(0, 255, (96, 96, 3), np.uint8)
    action_space = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return self.image(), {}

    def image(self) -> np.ndarray:
        image = np.full((96, 96, 3), 100, np.uint8)
        image[84:] = 0
        image[: int(self.x) + 4, :30] = (0, 220, 0)
        return image

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert (action >= self.action_space.low).all() and (action <= self.action_space.high).all()
        gain = float(action[1] - action[2])
        self.x, self.t = float(np.clip(self.x + gain, 0, 70)), self.t + 1
        return self.image(), gain, self.x >= 70, self.t >= 30, {}


def cover(**_: object) -> Cover:
    return Cover()


def car(**_: object) -> Car:
    return Car()
