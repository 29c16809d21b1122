"""Small environments that a user could write, each with one thing in it that is unusual or wrong."""

import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gs
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


def vector(size: int = 3) -> gs.Box:
    return gs.Box(-1, 1, (size,), np.float32)


def image(side: int = 64, channels: int = 3) -> gs.Box:
    return gs.Box(0, 255, (side, side, channels), np.uint8)


class Odd(gymnasium.Env):
    """Shows `see(self)`, or a sample of its space; an episode has `length` decisions."""

    def __init__(
        self, obs: gs.Space, act: gs.Space | None = None, see: Callable[["Odd"], Any] | None = None,
        reward: Any = 1.0, length: int = 11,
    ) -> None:  # fmt: skip
        self.observation_space, self.action_space = obs, act or gs.Discrete(2)
        self.see, self.reward, self.length, self.time = see, reward, length, 0

    def obs(self) -> Any:
        return self.see(self) if self.see else self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.obs(), self.reward, self.time >= self.length, False, {}


class OddVector(VectorEnv):
    """A vector environment written by hand, whose observations are `see(num_envs)`."""

    def __init__(self, obs: gs.Space, see: Callable[[int], Any], num_envs: int, column: bool = False) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs, self.see, self.time, self.column = num_envs, see, 0, column
        self.single_observation_space, self.single_action_space = obs, gs.Discrete(2)
        self.observation_space, self.action_space = (batch_space(s, num_envs) for s in (obs, self.single_action_space))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        assert seed is None or isinstance(seed, int)
        self.time = 0
        return self.see(self.num_envs), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        ended, never = np.full(self.num_envs, self.time % 10 == 0), np.zeros(self.num_envs, bool)
        reward = np.ones((self.num_envs, 1) if self.column else self.num_envs)
        return self.see(self.num_envs), reward, ended, never, {}


def plain() -> Odd:
    return Odd(vector())


def wide() -> Odd:
    return Odd(vector(4))


def changing() -> Odd:
    return Odd(vector(int(os.environ.get("ODD_SIZE", "3"))))


# Names


def action_reward() -> Odd:
    return Odd(vector(), gs.Dict({"reward": gs.Box(-1, 1, (), np.float32), "b": gs.Discrete(2)}))


def action_is_observation() -> Odd:
    return Odd(gs.Dict({"pos": vector(), "x": vector()}), gs.Dict({"pos": vector(), "b": gs.Discrete(2)}))


def observation_index() -> Odd:
    return Odd(gs.Dict({"index": gs.Box(0, 1, (), np.float32), "x": vector()}))


def observation_deter(max_time: int = 11) -> Odd:
    return Odd(gs.Dict({"deter": vector(32), "x": vector()}))


def joined() -> Odd:
    return Odd(gs.Dict({"a/b": vector(), "a": gs.Dict({"b": vector()})}))


def joined_actions() -> Odd:
    return Odd(vector(), gs.Dict({"a/b": vector(), "a": gs.Dict({"b": vector()})}))


# Kinds


def two_images() -> Odd:
    return Odd(gs.Dict({"a": image(), "b": image(32, 1)}))


def float_for_uint8(num_envs: int) -> OddVector:
    return OddVector(image(), lambda n: np.ones((n, 64, 64, 3), np.float32), num_envs)


def chw_for_hwc(num_envs: int) -> OddVector:
    return OddVector(image(), lambda n: np.zeros((n, 3, 64, 64), np.uint8), num_envs)


def wrong_shape() -> Odd:
    return Odd(image(), see=lambda env: np.zeros((3, 64, 64), np.uint8))


def wrong_dtype() -> Odd:
    return Odd(image(), see=lambda env: np.ones((64, 64, 3)))


def wrong_key() -> Odd:
    return Odd(gs.Dict({"x": vector(), "y": vector()}), see=lambda env: {"x": np.zeros(3, np.float32)})


def clock() -> Odd:
    return Odd(gs.Box(0, 2**62, (1,), np.int64), see=lambda env: np.array([1_700_000_000_000 + env.time]))


def float_clock() -> Odd:
    return Odd(gs.Box(0, np.inf, (), np.float64), see=lambda env: 1_700_000_000.0 + env.time)


# Ends, errors, old forms


def endless() -> Odd:
    return Odd(vector(), length=10**12)


def uses_torch() -> Odd:
    import torch

    net = torch.nn.Linear(256, 256)
    return Odd(vector(), see=lambda env: net(torch.ones(256, 256)).detach()[0, :3].numpy())


def cover_with_torch(**_: Any) -> gymnasium.Env:
    """World Models' task, with a network in the environment."""
    import torch

    from tests.fake_tasks import Cover

    class Torch(Cover):
        net = torch.nn.Linear(256, 256)

        def step(self, action: int) -> Any:
            self.net(torch.ones(256, 256))
            return super().step(action)

    return Torch()


def nan_when_told() -> Odd:
    def see(env: Odd) -> np.ndarray:
        return np.full(3, np.nan if os.environ.get("ODD_NAN") and env.time == 4 else 0.1, np.float32)

    return Odd(vector(), see=see)


def fixed() -> OddVector:
    return OddVector(vector(), lambda n: np.zeros((n, 3), np.float32), 3)


def column_of_rewards(num_envs: int) -> OddVector:
    return OddVector(vector(), lambda n: np.zeros((n, 3), np.float32), num_envs, column=True)


def reward_array() -> Odd:
    return Odd(vector(), reward=np.array([1.0], np.float32))


def two_rewards() -> Odd:
    return Odd(vector(), reward=np.ones(2))


def no_reward() -> Odd:
    return Odd(vector(), reward=None)


def out_of_range() -> Odd:
    return Odd(gs.Discrete(4), see=lambda env: 4 if env.time == 9 else 0)


def needs(size: int) -> Odd:
    return Odd(vector(size))


def repeats(repeat: int = 1) -> Odd:
    return Odd(vector(), reward=float(repeat))


def image_of(size: int = 48) -> Odd:
    return Odd(image(size))


class OldReset(Odd):
    def reset(self) -> Any:  # type: ignore[override]
        return self.obs(), {}


class OldResetForm(Odd):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.obs()


class OldStep(Odd):
    def step(self, action: Any) -> Any:
        obs, reward, done, _, info = super().step(action)
        return obs, reward, done, info


class NoOptions(Odd):
    """Takes a seed, but no options."""

    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class DiskError(Odd):
    def step(self, action: Any) -> Any:
        raise OSError(5, "Input/output error")


class Dies(Odd):
    def step(self, action: Any) -> Any:
        os._exit(3)


class Licence(Odd):
    def __init__(self) -> None:
        super().__init__(vector())
        raise gymnasium.error.Error("licence file expired on the 3rd")


def old_reset() -> Odd:
    return OldReset(vector())


def old_reset_form() -> Odd:
    return OldResetForm(vector())


def old_step() -> Odd:
    return OldStep(vector())


def no_options() -> Odd:
    return NoOptions(vector())


def dies() -> Odd:
    return Dies(vector())


def disk_error() -> Odd:
    return DiskError(vector())


gymnasium.register("OddLicence-v0", entry_point=Licence)
gymnasium.register("OddOldStep-v0", entry_point=old_step, max_episode_steps=5)
gymnasium.register("OddNeeds-v0", entry_point=needs, kwargs={"size": 3})
