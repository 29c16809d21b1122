"""Names of environments, and how to add more."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from ..errors import FastwmError
from .crafter import make_crafter
from .envpool import Seed, import_envpool, make_atari, make_dmc, make_envpool, task_names
from .gym import IMAGE_SIZE, GymBackend, Size, import_factory, make_from, make_gym
from .minecraft import make_minecraft
from .vec import UnknownEnv, VecEnv

Factory = Callable[..., VecEnv | VectorEnv]

ALIASES = {
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "acrobot": "Acrobot-v1",
    "mountaincar": "MountainCar-v0",
    "mountaincar_continuous": "MountainCarContinuous-v0",
    "lunarlander": "LunarLander-v3",
    "lunarlander_continuous": "LunarLanderContinuous-v3",
    "bipedalwalker": "BipedalWalker-v3",
    "carracing": "CarRacing-v3",
    "takecover": "TakeCover-v1",
}

_FORMS = (
    "names are short (cartpole), dmc:walker_walk, atari:Pong, crafter:reward, minecraft:diamond, envpool:<id>, "
    "gym:<id>, package.module:factory, or <prefix>:<name> of a plug-in"
)
_factories: dict[str, Factory] = {
    "dmc": make_dmc,
    "atari": make_atari,
    "envpool": make_envpool,
    "gym": make_gym,
    "crafter": make_crafter,
    "minecraft": make_minecraft,
}
_BUILT_IN = frozenset(_factories.values())


def register(prefix: str, factory: Factory) -> None:
    """Makes `make_env("<prefix>:<name>")` call `factory(name, num_envs=, seed=, size=, repeat=, **options)`.

    The factory returns a VecEnv or a Gymnasium VectorEnv. A package can do the same without being imported,
    by an entry point named `<prefix>` in the group `fastwm.envs`. Raises ValueError if the prefix is taken.
    """
    if prefix in _factories:
        raise ValueError(f"the prefix {prefix!r} is taken")
    _factories[prefix] = factory


def make_env(
    name: Any,
    num_envs: int = 1,
    seed: Seed = 0,
    *,
    size: Size = "default",
    repeat: int | None = None,
    keys: Mapping[str, str] | None = None,
    **options: Any,
) -> VecEnv:
    """Makes `num_envs` environments that step together.

    name: `cartpole` and other short names or bare EnvPool/Gymnasium ids; `dmc:walker_walk` (option `pixels`);
        `atari:Pong` (options `gray`, `sticky`, `full_action_space`, `noop_max`); `envpool:<id>`; `gym:<id>`
        (option `async_`); `crafter:reward`; `minecraft:diamond` (options `break_speed`, `length`);
        `package.module:factory`; or no string but an Env, a VectorEnv, or a
        callable that makes one.
    seed: environments and runs get unrelated streams; a list gives each environment its own.
    size: side in pixels of all images (64), rendered so where the engine can, else area-averaged; None keeps it.
    repeat: every action is stepped this often (1) and the rewards are summed. Where a factory or a Gymnasium
        environment has a parameter `size` or `repeat` of its own, the value given is passed to it instead.
    keys: what an observation is: {"camera": "image"} (or "image:chw", "image:hwc", where the channels are), "vector",
        "symbols" ("symbols:N" for N classes from 0), or "out" to leave it out. What is not named is guessed from its
        space.
    options: go to the environment (`render_mode="rgb_array"` for `render()`).

    Raises FastwmError for a name or option that does not exist, or an engine that is not installed.
    """
    if num_envs < 1:
        raise FastwmError(f"num_envs must be at least 1, got {num_envs}")
    if (seed if isinstance(seed, int) else min(seed, default=0)) < 0:
        raise FastwmError(f"seed must not be negative, got {seed}")
    given: dict[str, Any] = {"num_envs": num_envs, "seed": seed, "size": size, "repeat": repeat, "keys": keys}
    if not isinstance(name, str):
        return make_from(name, **given, **options)
    side = IMAGE_SIZE if size == "default" else size
    common = given | {"size": side, "repeat": 1 if repeat is None else repeat}
    try:
        prefix, colon, rest = name.partition(":")
        if not colon:
            env_id = ALIASES.get(name.lower(), name)
            if env_id in _envpool_ids():
                return make_envpool(env_id, **common, **options)
            return make_gym(env_id, **given, **options)
        factory = _factory(prefix)
        if factory is None:
            return make_from(import_factory(name), **given, **options)
        if factory is make_gym:
            return make_gym(rest, **given, **options)
        if factory not in _BUILT_IN:
            del common["keys"]
        env = factory(rest, **common, **options)
    except UnknownEnv:
        raise UnknownEnv(_advice(name)) from None
    if not isinstance(env, VecEnv):
        return VecEnv(GymBackend(env, seed, name), side, keys)
    return env.with_keys(keys) if keys and factory not in _BUILT_IN else env


def imports_code(name: str) -> bool:
    """Whether making this environment imports a module that its name gives, rather than what is installed for it."""
    prefix, colon, rest = name.partition(":")
    return bool(colon) and (":" in rest or _factory(prefix) is None)


def _factory(prefix: str) -> Factory | None:
    if prefix not in _factories:
        for entry in entry_points(group="fastwm.envs", name=prefix):
            _factories[prefix] = entry.load()
    return _factories.get(prefix)


def _envpool_ids() -> list[str]:
    try:
        return import_envpool().list_all_envs()
    except FastwmError:
        return []


def _advice(name: str) -> str:
    known = [*ALIASES, *(f"gym:{env_id}" for env_id in gymnasium.registry)]
    if ids := _envpool_ids():
        known += [f"envpool:{env_id}" for env_id in ids]
        known += [f"dmc:{task}" for task in task_names("envpool.mujoco.dmc")]
        known += [f"atari:{task}" for task in task_names("envpool.atari")]
    spelled = {candidate.lower(): candidate for candidate in known}
    close = [spelled[match] for match in difflib.get_close_matches(name.lower(), spelled, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"there is no environment {name!r}; {hint}{_FORMS}"
