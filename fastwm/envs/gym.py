"""Gymnasium: everything that EnvPool does not have, and the user's own environments."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.registration import find_highest_version, get_env_id, load_env_creator, parse_env_id
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ..errors import FastwmError
from .envpool import Seed, check_repeat, env_seeds, quiet_boxes
from .single import ActionRepeat, Checked, blame
from .spaces import ArrayTree
from .vec import StepResult, UnknownEnv, VecEnv

IMAGE_SIZE = 64
SAFE_PATH = "PYTHONSAFEPATH"
Size = int | None | Literal["default"]


class WrongNumber(FastwmError):
    """A vector environment of a fixed number of environments, which is not the one asked for."""

    def __init__(self, name: str, made: int, wanted: int) -> None:
        super().__init__(f"{name} makes {made} environments, but num_envs is {wanted}")
        self.made = made


class GymBackend:
    """A Gymnasium VectorEnv with next-step autoreset."""

    def __init__(self, env: VectorEnv, seed: Seed, name: str = "the vector environment") -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise FastwmError(
                f"the VectorEnv's metadata says autoreset_mode {mode}, but only NEXT_STEP gives every "
                "observation its own row: make it with autoreset_mode=AutoresetMode.NEXT_STEP"
            )
        self._env, self._name = env, name
        # Gymnasium's own vector environments take a seed for each environment, all others one integer.
        listed = isinstance(env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))
        seeds = env_seeds(seed, env.num_envs)
        one = int(np.random.SeedSequence(seeds).generate_state(1)[0] >> 1)
        self._seed: list[int] | int | None = seeds if listed else one
        self.num_envs = env.num_envs
        self.obs_space = env.single_observation_space
        self.act_space = env.single_action_space

    def reset(self) -> ArrayTree:
        try:
            obs, _ = self._env.reset(seed=self._seed)  # type: ignore[arg-type]
        except Exception as error:
            raise blame(self._name, "reset", error) from error
        self._seed = None  # a later reset goes on with the same random streams
        return obs

    def step(self, action: ArrayTree, rows: np.ndarray | None = None) -> StepResult:
        try:
            obs, reward, terminated, truncated, _ = self._env.step(action)
        except Exception as error:
            raise blame(self._name, "step", error) from error
        return obs, reward, terminated, truncated

    def render(self) -> np.ndarray:
        try:
            frames = self._env.render()
        except NotImplementedError:
            frames = None
        if frames is None or any(frame is None for frame in frames):
            raise FastwmError("cannot render: it draws nothing, or needs make_env(..., render_mode='rgb_array')")
        return np.stack(frames)

    def close(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*Calling `close` while waiting", UserWarning)
                self._env.close()
        except (EOFError, ConnectionError):  # a process is dead, so that it cannot be told to end
            for process in self._env.unwrapped.processes:  # type: ignore[attr-defined]
                process.terminate()
            self._env.unwrapped.closed = True


def make_gym(
    name: str,
    *,
    num_envs: int,
    seed: Seed,
    size: Size,
    repeat: int | None,
    keys: Mapping[str, str] | None = None,
    async_: bool = False,
    **options: Any,
) -> VecEnv:
    """Any Gymnasium id (also `package:Id-v0`); `async_` gives every environment its own process."""
    spec: Any = find_spec(name)
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except ModuleNotFoundError as error:
        raise FastwmError(f"gym:{name} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise blame(f"gym:{name}", "importing it", error) from error
    make = functools.partial(gymnasium.make, spec, disable_env_checker=True)
    return _wrap(make, f"gym:{name}", _parameters(creator) or (), options, num_envs, seed, size, repeat, keys, async_)


def find_spec(name: str) -> Any:
    """The registered environment; "module:Id" imports the module first. Raises UnknownEnv for an unknown one."""
    try:
        return _find_spec(name)
    except gymnasium.error.Error as error:
        raise UnknownEnv(str(error)) from None
    except ModuleNotFoundError as error:
        raise FastwmError(f"gym:{name} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise blame(f"gym:{name}", "importing it", error) from error


def make_from(
    source: Any,
    *,
    num_envs: int,
    seed: Seed,
    size: Size,
    repeat: int | None,
    keys: Mapping[str, str] | None = None,
    async_: bool = False,
    **options: Any,
) -> VecEnv:
    """Wraps what the user has: one Env, a VectorEnv, a VecEnv, or a callable that makes one.

    A callable is called as `source(**options)`, once for each environment if it makes single ones; if it has
    a parameter `num_envs`, that is passed too. A parameter `size` or `repeat` of its own gets what the user gave, and
    nothing is resized or repeated here then.
    """
    name = getattr(source, "__qualname__", type(source).__qualname__)
    own = _parameters(source) or () if _is_factory(source) else ()
    return _wrap(source, name, own, options, num_envs, seed, size, repeat, keys, async_)


def _is_factory(source: Any) -> bool:
    return callable(source) and not isinstance(source, (gymnasium.Env, VectorEnv, VecEnv))


def _wrap(
    source: Any, name: str, own: Collection[str], options: dict[str, Any], num_envs: int, seed: Seed, size: Size,
    repeat: int | None, keys: Mapping[str, str] | None, async_: bool,
) -> VecEnv:  # fmt: skip
    """As `make_from`, for a source that messages call `name` and whose own arguments are `own`."""
    check_repeat(1 if repeat is None else repeat)
    make = None
    if _is_factory(source):
        if "size" in own and size != "default":
            options, size = options | {"size": size}, None
        if "repeat" in own and repeat is not None:
            options, repeat = options | {"repeat": repeat}, None
        make = functools.partial(_call, source, name, num_envs, options)
    elif options:
        raise FastwmError(f"options {sorted(options)} have no effect on an environment that is already made")
    size, repeat = IMAGE_SIZE if size == "default" else size, repeat or 1
    env = make() if make else source
    if not isinstance(env, (VecEnv, VectorEnv, gymnasium.Env)):
        raise FastwmError(f"{name} gives a {type(env).__name__}, expected a gymnasium Env or VectorEnv")
    if isinstance(env, gymnasium.Env) and not isinstance(env, VectorEnv):
        if make is None and (num_envs != 1 or async_):
            raise FastwmError("one Env serves num_envs=1 without async_ only: pass a function that makes it")
        env = _vectorize(env, make, name, num_envs, repeat, async_)
    elif repeat != 1 or async_:
        raise FastwmError("repeat and async_ cannot be applied to a made VectorEnv: build it with them")
    if make and env.num_envs != num_envs:
        env.close()
        raise WrongNumber(name, env.num_envs, num_envs)
    if isinstance(env, VecEnv):
        return env.with_keys(keys) if keys else env
    return VecEnv(GymBackend(env, seed, name), size, keys)


def import_factory(name: str) -> Any:
    """Resolves `package.module:attribute`, of the current folder too.

    Raises UnknownEnv if there is no such module, FastwmError if it lacks the attribute, cannot be imported, or the
    attribute makes no environment.
    """
    module_name, _, attribute = name.partition(":")
    look_here()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UnknownEnv(name) from None
        raise FastwmError(f"module {module_name} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise blame(f"module {module_name}", "importing it", error) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise FastwmError(f"module {module_name} has no {attribute!r}; {_contents(module, attribute)}")
        found = getattr(found, part)
    if not _makes_env(found):
        raise FastwmError(f"{name} is neither a Gymnasium environment, nor its class, nor a function that makes one")
    return found


def look_here() -> None:
    """Let modules of the current folder be found, after all others: `--env my_module:make_env`."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _makes_env(found: Any) -> bool:
    kinds = (gymnasium.Env, VectorEnv, VecEnv)
    if inspect.isclass(found):
        return issubclass(found, kinds)
    while isinstance(found, functools.partial):
        found = found.func
    if inspect.isfunction(found) or inspect.ismethod(found):
        return found.__module__.partition(".")[0] not in sys.stdlib_module_names
    return isinstance(found, kinds)


def _contents(module: ModuleType, name: str) -> str:
    """Names in a module that could make an environment, those most like `name` first."""
    public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    own = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    close = difflib.get_close_matches(name, own, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}it has: {', '.join(own) or 'no function or class of its own'}"


def _find_spec(name: str) -> Any:
    module, _, env_id = name.rpartition(":")
    if module:
        look_here()
        importlib.import_module(module)
    namespace, plain, version = parse_env_id(env_id)
    if version is None and (latest := find_highest_version(namespace, plain)) is not None:
        env_id = get_env_id(namespace, plain, latest)
    return gymnasium.spec(env_id)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # some built-in callables have no signature
        return None


def _call(factory: Callable[..., Any], name: str, num_envs: int, options: dict[str, Any]) -> Any:
    """The factory's environment; an option that it lacks or refuses, and an error in it, are a FastwmError."""
    parameters = _parameters(factory)
    if parameters is not None:
        options = options | ({"num_envs": num_envs} if "num_envs" in parameters else {})
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not takes_all and (refused := sorted(options.keys() - parameters.keys())):
            raise FastwmError(f"{name} has no argument {refused[0]!r}; it takes {', '.join(parameters) or 'none'}")
        named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if missing := [p.name for p in named if p.default is p.empty and p.name not in options]:
            raise FastwmError(f"{name} needs an argument {missing[0]!r}: give it by --env-args {missing[0]} VALUE")
    try:
        with quiet_boxes():
            return factory(**options)
    except Exception as error:
        raise blame(name, "making it", error) from error


def _vectorize(
    first: gymnasium.Env,
    make: Callable[[], gymnasium.Env] | None,
    name: str,
    num_envs: int,
    repeat: int,
    async_: bool,
) -> VectorEnv:
    def build(env: gymnasium.Env | None = None) -> gymnasium.Env:
        env = env if env is not None else make() if make else None
        assert env is not None
        env = Checked(env, name)
        return ActionRepeat(env, repeat) if repeat > 1 else env

    if async_:
        first.close()
        return _separate(build, name, num_envs)
    with quiet_boxes():
        makers: list[Callable[[], gymnasium.Env]] = [functools.partial(build, first)]
        makers += [build] * (num_envs - 1)
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)


def _separate(build: Callable[[], gymnasium.Env], name: str, num_envs: int) -> VectorEnv:
    """A process for each environment, not forked from this one: PyTorch's threads do not survive a fork, and what
    waits for them in the child hangs."""

    def build_apart() -> gymnasium.Env:
        if multiprocessing.parent_process() is not None:
            if not safe:
                os.environ.pop(SAFE_PATH, None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
        return build()

    # Gymnasium warns of a worker's error with its traceback; the error itself says it in one line.
    warnings.filterwarnings("ignore", "(?s).*ERROR: (Received the following|Raising the last|Traceback)", UserWarning)
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["fastwm.envs"])  # imported once for all
    safe = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"  # Python would import what its new processes need from the current folder first
    try:
        with quiet_boxes():
            return AsyncVectorEnv([build_apart] * num_envs, context=method, autoreset_mode=AutoresetMode.NEXT_STEP)
    except Exception as error:
        raise blame(name, "starting it", error) from error
    finally:
        if not safe:
            del os.environ[SAFE_PATH]
