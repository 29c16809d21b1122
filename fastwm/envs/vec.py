"""The batched environment that everything above this folder sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gs

from ..errors import FastwmError
from ..row import OWN_KEYS
from .observations import ObsAdapter
from .spaces import ActAdapter, ActSpace, ArrayTree

Record: TypeAlias = dict[str, np.ndarray]
Action: TypeAlias = np.ndarray | torch.Tensor | Mapping[str, np.ndarray | torch.Tensor]
StepResult: TypeAlias = tuple[ArrayTree, np.ndarray, np.ndarray, np.ndarray]


class UnknownEnv(FastwmError):
    """No environment has this name."""


class Backend(Protocol):
    """An engine as `VecEnv` needs it: Gymnasium's next-step autoreset, spaces of one environment."""

    num_envs: int
    obs_space: Space
    act_space: Space

    def reset(self) -> ArrayTree:
        """Starts new episodes everywhere; returns observations [num_envs, ...]."""

    def step(self, action: ArrayTree, rows: np.ndarray | None = None) -> StepResult:
        """Returns observation, reward, terminated, truncated. The step after an end resets instead.

        Environments that are not among `rows` may be left standing; what is returned of them means nothing.
        """

    def render(self) -> np.ndarray:
        """Returns frames [num_envs, H, W, 3]."""

    def close(self) -> None: ...


class VecEnv:
    """`num_envs` environments in step; each row is one observation.

    `obs_space` maps keys to spaces of one environment: images uint8 [H, W, C], symbols int64, vectors
    float32. `act_space` is Box(-1, 1) float32, Discrete, MultiDiscrete, or a dict of those. `keys` says what an
    observation is (`make_env`), else it is guessed from its space.

    A record holds the observation keys [B, ...] and `reward` float32 [B] (received on arriving at this row),
    `is_first`, `is_last`, `is_terminal` bool [B]. A time limit sets `is_last` only. The row after an end is
    the reset row: `is_first`, reward 0, and the action given to that step is ignored (it is no decision).
    """

    def __init__(self, backend: Backend, size: int | None = None, keys: Mapping[str, str] | None = None) -> None:
        self._backend, self._size = backend, size
        self._obs = ObsAdapter(backend.obs_space, size, keys)
        self._act = ActAdapter(backend.act_space, backend.num_envs)
        self._done: np.ndarray | None = None
        self._steps = 0
        self.num_envs = backend.num_envs
        self.obs_space: dict[str, Space] = self._obs.spaces
        self.act_space: ActSpace = self._act.space
        actions = set(self.act_space) if isinstance(self.act_space, dict) else set()
        if taken := sorted(actions & {*OWN_KEYS, *self.obs_space}):
            raise FastwmError(
                f"action {taken[0]!r} has the name of an observation, or of a row's own keys "
                f"({', '.join(OWN_KEYS)}): rename it in the environment"
            )

    def with_keys(self, keys: Mapping[str, str]) -> VecEnv:
        """The same environments, their observations taken for what `keys` says."""
        return VecEnv(self._backend, self._size, keys)

    def reset(self) -> Record:
        """Starts new episodes in all environments."""
        none = np.zeros(self.num_envs, bool)
        obs = self._backend.reset()
        record = self._record(obs, np.zeros(self.num_envs), none, none, ~none)
        self._obs.warn_of_large_numbers(obs)
        return record

    def step(self, action: Action, rows: np.ndarray | None = None) -> Record:
        """Acts with [num_envs, ...] arrays or tensors (a dict of them for dict spaces).

        Who is done with some environments names the others in `rows`, which saves time where the engine can step a
        part of them; the record of those left out means nothing.

        Raises ValueError for a wrong shape or dtype, NaN, or a discrete action out of range. Continuous
        actions are clipped to [-1, 1]. Raises FastwmError where the environment answers something that its spaces do
        not declare, or that is not finite.
        """
        if self._done is None:
            raise RuntimeError("call reset() before step()")
        self._steps += 1
        return self._record(*self._backend.step(self._act(action), rows), self._done)

    def sample_action(self, rng: np.random.Generator) -> np.ndarray | dict[str, np.ndarray]:
        """Uniform random actions for all environments, from a generator that the caller can save."""
        if isinstance(self.act_space, dict):
            return {key: self._sample(space, rng) for key, space in self.act_space.items()}
        return self._sample(self.act_space, rng)

    def render(self) -> np.ndarray:
        """Returns frames uint8 [num_envs, H, W, 3]; needs `make_env(..., render_mode="rgb_array")`."""
        return self._backend.render()

    def close(self) -> None:
        """Frees the environments."""
        self._backend.close()

    def _sample(self, space: Space, rng: np.random.Generator) -> np.ndarray:
        shape = (self.num_envs, *(space.shape or ()))
        if isinstance(space, gs.Box):
            return rng.uniform(-1, 1, shape).astype(np.float32)
        return rng.integers(space.n if isinstance(space, gs.Discrete) else space.nvec, size=shape)  # type: ignore

    def _record(
        self,
        obs: ArrayTree,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        is_first: np.ndarray,
    ) -> Record:
        record = self._obs(obs, self.num_envs)
        reward, terminated, truncated = (
            self._each(name, value)
            for name, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated))
        )
        done = ~is_first & (terminated.astype(bool) | truncated.astype(bool))
        self._done = done
        flags = {"is_first": is_first.copy(), "is_last": done, "is_terminal": done & terminated.astype(bool)}
        record = record | {"reward": np.where(is_first, 0, reward).astype(np.float32)} | flags
        self._check_finite(record)
        return record

    def _each(self, name: str, value: np.ndarray) -> np.ndarray:
        """One number an environment [num_envs]; a trailing dimension of 1 is dropped."""
        value = np.asarray(value)
        if value.shape not in ((self.num_envs,), (self.num_envs, 1)) or value.dtype.kind not in "biuf":
            raise FastwmError(f"{name} arrived as {value.dtype} {value.shape}, expected numbers ({self.num_envs},)")
        return value.reshape(self.num_envs)

    def _check_finite(self, record: Record) -> None:
        for key, value in record.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                env = int(np.argwhere(~np.isfinite(value))[0][0])
                where = f"{key!r} of environment {env}"
                raise FastwmError(f"{where} is not finite (NaN or infinite) at its step {self._steps}")


def describe(env: VecEnv) -> str:
    """One line on the spaces, and what each key was taken for: `8 x {image: image 64x64x3} -> Discrete(6)`."""
    act = env.act_space
    acts = ", ".join(f"{k}: {_brief(s)}" for k, s in act.items()) if isinstance(act, dict) else _brief(act)
    return f"{env.num_envs} x {{{env._obs.describe()}}} -> {acts}"


def _brief(space: Space) -> str:
    return f"Box(-1, 1, {space.shape})" if isinstance(space, gs.Box) else str(space)
