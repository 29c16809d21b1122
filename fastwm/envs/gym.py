"""Gymnasium: everything that EnvPool does not have, and the user's own environments."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ..errors import FastwmError
from .envpool import Seed, check_repeat, env_seeds, quiet_boxes
from .spaces import ArrayTree
from .vec import StepResult, UnknownEnv, VecEnv


class GymBackend:
    """A Gymnasium VectorEnv with next-step autoreset."""

    def __init__(self, env: VectorEnv, seed: Seed) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise FastwmError(
                f"the VectorEnv's metadata says autoreset_mode {mode}, but only NEXT_STEP gives every "
                "observation its own row: make it with autoreset_mode=AutoresetMode.NEXT_STEP"
            )
        self._env = env
        self._seeds: list[int] | None = env_seeds(seed, env.num_envs)
        self.num_envs = env.num_envs
        self.obs_space = env.single_observation_space
        self.act_space = env.single_action_space

    def reset(self) -> ArrayTree:
        obs, _ = self._env.reset(seed=self._seeds)  # type: ignore[arg-type]
        self._seeds = None  # a later reset goes on with the same random streams
        return obs

    def step(self, action: ArrayTree, rows: np.ndarray | None = None) -> StepResult:
        return self._env.step(action)[:4]

    def render(self) -> np.ndarray:
        try:
            frames = self._env.render()
        except NotImplementedError:
            frames = None
        if frames is None or any(frame is None for frame in frames):
            raise FastwmError("cannot render: it draws nothing, or needs make_env(..., render_mode='rgb_array')")
        return np.stack(frames)

    def close(self) -> None:
        self._env.close()


class ActionRepeat(gymnasium.Wrapper):
    """Steps every action `repeat` times, or until the episode ends, and sums the rewards."""

    def __init__(self, env: gymnasium.Env, repeat: int) -> None:
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make_gym(
    name: str,
    *,
    num_envs: int,
    seed: Seed,
    size: int | None,
    repeat: int,
    async_: bool = False,
    **options: Any,
) -> VecEnv:
    """Any Gymnasium id (also `package:Id-v0`); `async_` gives every environment its own process."""
    make = functools.partial(gymnasium.make, name, disable_env_checker=True, **options)
    try:
        return make_from(make, num_envs=num_envs, seed=seed, size=size, repeat=repeat, async_=async_)
    except gymnasium.error.Error as error:
        raise UnknownEnv(str(error)) from None
    except ModuleNotFoundError as error:
        raise FastwmError(f"gym:{name} needs a package that is not installed: {error}") from error


def make_from(
    source: Any,
    *,
    num_envs: int,
    seed: Seed,
    size: int | None,
    repeat: int,
    async_: bool = False,
    **options: Any,
) -> VecEnv:
    """Wraps what the user has: one Env, a VectorEnv, a VecEnv, or a callable that makes one.

    A callable is called as `source(**options)`, once for each environment if it makes single ones; if it has
    a parameter `num_envs`, that is passed too.
    """
    check_repeat(repeat)
    is_factory = callable(source) and not isinstance(source, (gymnasium.Env, VectorEnv, VecEnv))
    if options and not is_factory:
        raise FastwmError(f"options {sorted(options)} have no effect on an environment that is already made")
    make = functools.partial(_call, source, num_envs, options) if is_factory else None
    env = make() if make else source
    if not isinstance(env, (VecEnv, VectorEnv, gymnasium.Env)):
        raise FastwmError(f"{source!r} gives a {type(env).__name__}, expected a gymnasium Env or VectorEnv")
    if isinstance(env, gymnasium.Env) and not isinstance(env, VectorEnv):
        if make is None and (num_envs != 1 or async_):
            raise FastwmError("one Env serves num_envs=1 without async_ only: pass a function that makes it")
        env = _vectorize(env, make, num_envs, repeat, async_)
    elif repeat != 1 or async_:
        raise FastwmError("repeat and async_ cannot be applied to a made VectorEnv: build it with them")
    if make and env.num_envs != num_envs:
        raise FastwmError(f"{source!r} makes {env.num_envs} environments, but num_envs is {num_envs}")
    return env if isinstance(env, VecEnv) else VecEnv(GymBackend(env, seed), size)


def import_factory(name: str) -> Any:
    """Resolves `package.module:attribute`. Raises UnknownEnv if there is no such module or attribute."""
    module_name, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UnknownEnv(name) from None
        raise
    for part in attribute.split("."):
        found = getattr(found, part, None)  # type: ignore[assignment]
        if found is None:
            raise UnknownEnv(name)
    return found


def _call(factory: Callable[..., Any], num_envs: int, options: dict[str, Any]) -> Any:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some built-in callables have no signature
        parameters = {}  # type: ignore[assignment]
    sized = {"num_envs": num_envs} if "num_envs" in parameters else {}
    try:
        with quiet_boxes():
            return factory(**sized, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise FastwmError(f"the environment refuses an option: {error}") from error
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise FastwmError(f"the environment needs more packages: {error}") from error


def _vectorize(
    first: gymnasium.Env, make: Callable[[], gymnasium.Env] | None, num_envs: int, repeat: int, async_: bool
) -> VectorEnv:
    def build(env: gymnasium.Env | None = None) -> gymnasium.Env:
        env = env if env is not None else make() if make else None
        assert env is not None
        return ActionRepeat(env, repeat) if repeat > 1 else env

    with quiet_boxes():
        if async_:
            first.close()
            return AsyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        makers: list[Callable[[], gymnasium.Env]] = [functools.partial(build, first)]
        makers += [build] * (num_envs - 1)
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
