"""EnvPool: the fast engine for most environments, with its traps closed.

- `seed=s` gives environment i the seed s + i: neighbouring runs would share streams, so lists are passed.
- `noop_max=0` crashes the process; so do pixels without a loaded OpenGL platform. Both are checked before.
- VizDoom's threads race to create `./_vizdoom` and crash the process, so it is created first.
- Its `terminated` is false where an Atari game is lost on the very last allowed step; `info` knows better.
- Its TakeCover reward is health shaping, nearly always 0; here it is the scenario's +1 per step survived.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from gymnasium import Space

from ..errors import FastwmError
from .observations import check_size
from .spaces import ArrayTree
from .vec import StepResult, UnknownEnv, VecEnv

Seed = int | Sequence[int]
MAX_THREADS = 1024

# MuJoCo finds OpenGL only if the system's EGL was loaded before envpool, which brings a rival copy.
_egl_loaded = False

_DMC_SHORT = {"cup_catch": "ball_in_cup_catch"}  # the name most Dreamer code uses


class EnvPoolBackend:
    """One EnvPool instance. `repeat` steps each action that often and sums the rewards, never past an end."""

    def __init__(self, env_id: str, num_envs: int, seed: Seed, repeat: int, options: dict[str, Any]) -> None:
        envpool = import_envpool()
        check_repeat(repeat)
        if options.get("noop_max", 1) < 1:
            raise FastwmError("noop_max must be at least 1: EnvPool crashes with 0")
        if not 0 <= options.get("num_threads", 0) <= MAX_THREADS:
            raise FastwmError(f"num_threads must be from 0 to {MAX_THREADS}, got {options['num_threads']}")
        family = _family(env_id)
        if options.get("from_pixels") or (options.get("render_mode") and "mujoco" in family):
            check_rendering(env_id)
        if family == "envpool.vizdoom":
            os.makedirs("_vizdoom", exist_ok=True)
        options = {"num_threads": min(num_envs, _num_cores()), "seed": env_seeds(seed, num_envs)} | options
        with quiet_boxes():
            self._pool = envpool.make_gymnasium(env_id, num_envs=num_envs, **options)
            self.obs_space: Space = self._pool.observation_space
            self.act_space: Space = self._pool.action_space
        self._repeat = repeat
        self._reward_is_survival = env_id == "TakeCover-v1"
        self._done = np.zeros(num_envs, bool)
        self.num_envs = num_envs

    def reset(self) -> ArrayTree:
        self._done[:] = False
        return self._pool.reset()[0]

    def step(self, action: ArrayTree, rows: np.ndarray | None = None) -> StepResult:
        everyone = rows is None
        stepped = np.arange(self.num_envs) if rows is None else rows
        obs, reward, terminated, truncated, order = self._advance(action, stepped)
        if not everyone:
            obs, reward, terminated, truncated = (
                _scatter(x, order, self.num_envs) for x in (obs, reward, terminated, truncated)
            )
        live = np.isin(np.arange(self.num_envs), stepped)
        live &= ~(self._done | terminated | truncated)  # a done row has just been reset and must stay there
        for _ in range(self._repeat - 1):
            if not live.any():
                break
            more, gain, terminated_now, truncated_now, order = self._advance(action, np.flatnonzero(live))
            _assign(obs, order, more)
            reward[order] += gain
            terminated[order], truncated[order] = terminated_now, truncated_now
            live[order] = ~(terminated_now | truncated_now)
        self._done = terminated | truncated
        return obs, reward, terminated, truncated

    def render(self) -> np.ndarray:
        try:
            return np.asarray(self._pool.render(env_ids=np.arange(self.num_envs)))
        except RuntimeError as error:
            raise FastwmError(f"cannot render: {error}; use make_env(..., render_mode='rgb_array')") from None

    def close(self) -> None:
        self._pool.close()

    def _advance(
        self, action: ArrayTree, rows: np.ndarray
    ) -> tuple[ArrayTree, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self._pool.send(action[rows], rows.astype(np.int32))
        obs, reward, terminated, truncated, info = self._pool.recv()
        if "terminated" in info:
            terminated = terminated | (truncated & info["terminated"].astype(bool))
        if self._reward_is_survival:
            reward = np.ones_like(reward)
        return obs, reward, terminated, truncated, info["env_id"]


def make_envpool(
    name: str,
    *,
    num_envs: int,
    seed: Seed,
    size: int | None,
    repeat: int,
    keys: Mapping[str, str] | None = None,
    **options: Any,
) -> VecEnv:
    """Any EnvPool id. Frames are not stacked unless `stack_num` says so: a recurrent model needs one."""
    envpool = import_envpool()
    if name not in envpool.list_all_envs():
        raise UnknownEnv(name)
    check_size(size)
    if "batch_size" in options:
        raise FastwmError("batch_size is no option of an environment here: all environments step together")
    try:
        with quiet_boxes():
            fields = envpool.make_spec(name, **options).config._asdict()
        defaults = {"stack_num": 1, "use_combined_action": True}
        if size is not None:
            defaults |= {"img_height": size, "img_width": size}
        for key, value in defaults.items():
            if key in fields:
                options.setdefault(key, value)
        return VecEnv(EnvPoolBackend(name, num_envs, seed, repeat, options), size, keys)
    except TypeError as error:
        raise FastwmError(f"envpool:{name} does not take these options {sorted(options)}: {error}") from error
    except (ImportError, RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise FastwmError(f"envpool:{name} cannot be made: {error}") from error


def make_dmc(
    name: str,
    *,
    num_envs: int,
    seed: Seed,
    size: int | None,
    repeat: int,
    pixels: bool = False,
    **options: Any,
) -> VecEnv:
    """DeepMind Control task such as `walker_walk`: proprioception, or camera images with `pixels`."""
    env_id = _lookup(_DMC_SHORT.get(name, name), "envpool.mujoco.dmc")
    if pixels:
        camera = 2 if env_id.startswith("Quadruped") else 0
        options = {"from_pixels": True, "render_camera_id": camera, "frame_stack": 1} | options
        if size is not None:
            options = {"render_width": size, "render_height": size} | options
    return make_envpool(env_id, num_envs=num_envs, seed=seed, size=size, repeat=repeat, **options)


def make_atari(
    name: str,
    *,
    num_envs: int,
    seed: Seed,
    size: int | None,
    repeat: int,
    gray: bool = True,
    sticky: bool = True,
    full_action_space: bool = True,
    noop_max: int = 30,
    **options: Any,
) -> VecEnv:
    """Atari game such as `Pong` or `ms_pacman`, by default as DreamerV3 plays it.

    Atari100k switches gray, sticky and full_action_space off. `sticky` repeats the last action with
    probability 0.25. `frame_skip` (4) repeats every action.
    """
    if repeat != 1:
        raise FastwmError("Atari repeats actions by itself: use frame_skip instead of repeat")
    options = {
        "gray_scale": gray,
        "repeat_action_probability": 0.25 if sticky else 0.0,
        "full_action_space": full_action_space,
        "noop_max": noop_max,
        "use_fire_reset": False,
    } | options
    env_id = _lookup(name, "envpool.atari")
    return make_envpool(env_id, num_envs=num_envs, seed=seed, size=size, repeat=1, **options)


def import_envpool() -> Any:
    """The envpool module, or a FastwmError that says how to get it."""
    global _egl_loaded
    if "envpool" not in sys.modules:
        with suppress(OSError):
            ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
            _egl_loaded = True
    try:
        import envpool
    except ImportError as error:
        raise FastwmError(f"this environment needs EnvPool ({error}): pip install 'fastwm[agents]'") from error
    return envpool


def task_names(family: str) -> dict[str, str]:
    """Maps snake_case task names of an EnvPool family (such as "envpool.atari") to its ids."""
    import_envpool()
    from envpool.registration import registry

    def snake(env_id: str) -> str:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", env_id.rsplit("-", 1)[0]).lower()

    return {snake(env_id): env_id for env_id, spec in sorted(registry.specs.items()) if spec[0] == family}


def env_seeds(seed: Seed, num_envs: int) -> list[int]:
    """One int32 seed for each environment, unrelated between environments and between runs; or those given."""
    if not isinstance(seed, int):
        if len(seed) != num_envs:
            raise FastwmError(f"{num_envs} environments need as many seeds, got {len(seed)}")
        return list(seed)
    return [int(np.random.SeedSequence((seed, i)).generate_state(1)[0] >> 1) for i in range(num_envs)]


def check_repeat(repeat: int) -> None:
    """Raises FastwmError unless `repeat` is a positive number of steps."""
    if not isinstance(repeat, int) or repeat < 1:
        raise FastwmError(f"repeat must be an integer of at least 1, got {repeat!r}")


@contextmanager
def quiet_boxes() -> Iterator[None]:
    """Silences what gymnasium says of every float64 Box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        yield


@functools.cache
def check_rendering(env_id: str) -> None:
    """Raises FastwmError where MuJoCo cannot render: EnvPool would end the process, so a child tries."""
    load = "import ctypes; ctypes.CDLL('libEGL.so.1', mode=ctypes.RTLD_GLOBAL); import envpool"
    make = f"envpool.make_gymnasium({env_id!r}, num_envs=1, from_pixels=True).reset()"
    command = [sys.executable, "-P", "-W", "ignore", "-c", f"{load}; {make}"]
    probe = subprocess.run(command, check=False, capture_output=True, text=True)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        raise FastwmError(f"MuJoCo cannot render: {reason} (needs EGL: apt install libegl1 libgl1-mesa-dri)")
    if not _egl_loaded:
        raise FastwmError("MuJoCo cannot render: envpool was imported before fastwm loaded EGL; import it later")
    with suppress(ImportError):  # both bring LLVM: loaded after Mesa's, Triton's crashes the process
        importlib.import_module("triton")


def _lookup(name: str, family: str) -> str:
    plain = {task.replace("_", ""): env_id for task, env_id in task_names(family).items()}
    key = re.sub(r"-v\d+$", "", name).replace("_", "").lower()
    if key not in plain:
        raise UnknownEnv(name)
    return plain[key]


def _family(env_id: str) -> str:
    from envpool.registration import registry

    return registry.specs[env_id][0] if env_id in registry.specs else ""


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _assign(obs: ArrayTree, rows: np.ndarray, new: ArrayTree) -> None:
    if isinstance(obs, dict):
        for key, value in obs.items():
            _assign(value, rows, new[key])
    else:
        obs[rows] = new


def _scatter(part: ArrayTree, rows: np.ndarray, num_envs: int) -> ArrayTree:
    """The results of some environments among those of all; the others' are zero."""
    if isinstance(part, dict):
        return {key: _scatter(value, rows, num_envs) for key, value in part.items()}
    whole = np.zeros((num_envs, *part.shape[1:]), part.dtype)
    whole[rows] = part
    return whole
