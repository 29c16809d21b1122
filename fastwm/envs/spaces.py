"""Trees of spaces, and actions in one canonical form, whatever the environment declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gs

from ..errors import FastwmError

ArrayTree: TypeAlias = Any  # arrays nested in dicts and tuples, each with a leading [num_envs]
ActSpace: TypeAlias = Space | dict[str, Space]
Path: TypeAlias = tuple[Any, ...]  # of keys and indices down a tree
Convert: TypeAlias = Callable[[np.ndarray], np.ndarray]

MAX_CHOICES = 2**16  # of one discrete action, each an output of the actor
SUPPORTED = "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


class ActAdapter:
    """Checks a batched canonical action and turns it into what the environment takes.

    Canonical spaces: Box(-1, 1) float32 for continuous actions (values are clipped to it, then rescaled to
    the true bounds; unbounded dimensions pass through clipped), Discrete and MultiDiscrete from 0. A nested
    Dict or Tuple becomes a flat dict with "/" joined keys.
    """

    def __init__(self, space: Space, num_envs: int) -> None:
        self._raw, self._num_envs = space, num_envs
        self._leaves: dict[str, tuple[Space, Convert]] = {}
        for path, leaf in walk(space):
            key = key_of(path)
            if key in self._leaves:
                raise FastwmError(f"two actions are called {key!r} once nested keys are joined by '/': rename one")
            self._leaves[key] = _act_leaf(leaf)
        if not self._leaves:
            raise FastwmError("the environment has no action")
        spaces = {key: canonical for key, (canonical, _) in self._leaves.items()}
        self.space: ActSpace = spaces if _is_nested(space) else spaces[""]

    def __call__(self, action: Any) -> ArrayTree:
        if not isinstance(self.space, dict):
            action = {"": action}
        keys = sorted(action) if isinstance(action, Mapping) else f"none, it is a {type(action).__name__}"
        if keys != sorted(self._leaves):
            raise ValueError(f"the action's keys are {keys}, expected {sorted(self._leaves)}")
        flat = {}
        for key, (space, convert) in self._leaves.items():
            name = f"action[{key!r}]" if key else "action"
            flat[key] = convert(_checked(name, action[key], space, self._num_envs))
        return _nest(self._raw, flat)

    def canonical(self, action: ArrayTree) -> dict[str, np.ndarray]:
        """The actions that `self` turns into these: its inverse, a lone action by the name "action".

        Raises FastwmError for actions that are outside of their space.
        """
        found: dict[str, np.ndarray] = {}
        for (path, leaf), (key, (space, convert)) in zip(walk(self._raw), self._leaves.items()):
            value = action
            for part in path:
                value = value[part]
            given = np.asarray(value)
            x: np.ndarray
            if isinstance(space, gs.Box):
                low, high = (convert(np.full(given.shape, side)).astype(np.float64) for side in (-1.0, 1.0))
                x = (2 * (given - low) / np.where(high > low, high - low, 1) - 1).astype(np.float32)
            else:
                x = given.astype(np.int64) - np.asarray(convert(np.zeros(given.shape, np.int64)), np.int64)
            name = f"action {key!r}" if key else "an action"
            if not np.allclose(convert(_checked(name, x, space, len(x))), given, atol=1e-5):
                raise FastwmError(f"{name} is not within {leaf}")
            found[key or "action"] = x
        return found


def _is_nested(space: Space) -> bool:
    return isinstance(space, (gs.Dict, gs.Tuple))


def _children(space: Space) -> Iterator[tuple[Any, Space]]:
    if isinstance(space, gs.Dict):
        yield from space.spaces.items()
    elif isinstance(space, gs.Tuple):
        yield from enumerate(space.spaces)


def key_of(path: Path) -> str:
    """Nested keys joined by "/"."""
    return "/".join(map(str, path))


def walk(space: Space, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    """The leaves of a space, with their paths."""
    if not _is_nested(space):
        yield path, space
    for key, child in _children(space):
        yield from walk(child, (*path, key))


def _nest(space: Space, flat: Mapping[str, np.ndarray], path: Path = ()) -> ArrayTree:
    if not _is_nested(space):
        return flat[key_of(path)]
    nested = {key: _nest(child, flat, (*path, key)) for key, child in _children(space)}
    return nested if isinstance(space, gs.Dict) else tuple(nested.values())


def _act_leaf(space: Space) -> tuple[Space, Convert]:
    if isinstance(space, gs.Discrete):
        first = int(space.start)
        return gs.Discrete(int(space.n)), lambda x: x.astype(np.int64) + first
    if isinstance(space, gs.MultiDiscrete):
        return _grid(space.nvec, space.start, space.dtype)
    if isinstance(space, gs.MultiBinary):
        return _grid(np.full(space.shape, 2), np.zeros(space.shape, np.int64), space.dtype)
    if isinstance(space, gs.Box) and np.issubdtype(space.dtype, np.integer):
        low = space.low.astype(np.int64)
        return _grid(space.high.astype(np.int64) - low + 1, low, space.dtype)
    if isinstance(space, gs.Box):
        return gs.Box(-1.0, 1.0, space.shape, np.float32), _rescale(space)
    raise FastwmError(f"actions of {space} are not supported: {SUPPORTED}")


def _grid(sizes: np.ndarray, start: np.ndarray, dtype: Any) -> tuple[Space, Convert]:
    if (sizes < 1).any() or (sizes > MAX_CHOICES).any():
        raise FastwmError(f"a discrete action has {sizes.max()} choices: at most {MAX_CHOICES:,} are supported")
    return gs.MultiDiscrete(sizes), lambda x: (x.astype(np.int64) + start).astype(dtype)


def _rescale(space: gs.Box) -> Convert:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = (np.abs(low) < 1e30) & (np.abs(high) < 1e30)
    # A smallest positive float as a bound is a C++ slip for "no bound" (numeric_limits<double>::min()).
    floor = np.where((low != 0) & (np.abs(low) < 1e-30), -np.inf, low)
    scale = np.where(bounded, (np.where(bounded, high, 0) - np.where(bounded, low, 0)) / 2, 1.0)
    offset = np.where(bounded, (np.where(bounded, high, 0) + np.where(bounded, low, 0)) / 2, 0.0)

    def convert(x: np.ndarray) -> np.ndarray:
        return np.clip(np.clip(x, -1, 1) * scale + offset, floor, high).astype(space.dtype)

    return convert


def _checked(name: str, value: Any, space: Space, num_envs: int) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).cpu().numpy()
    value = np.asarray(value)
    assert space.shape is not None
    expected = (num_envs, *space.shape)
    if value.shape != expected:
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}: {space} x {num_envs}")
    if isinstance(space, gs.Box):
        if not np.issubdtype(value.dtype, np.floating):
            raise ValueError(f"{name} has dtype {value.dtype}, expected floats in [-1, 1]")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity")
        return value.astype(np.float64)
    if not np.issubdtype(value.dtype, np.integer):
        raise ValueError(f"{name} has dtype {value.dtype}, expected integers for {space}")
    sizes = space.n if isinstance(space, gs.Discrete) else space.nvec  # type: ignore[attr-defined]
    if ((value < 0) | (value >= sizes)).any():
        raise ValueError(f"{name} is out of range: values {value.min()} to {value.max()} for {space}")
    return value
