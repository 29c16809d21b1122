"""Observations and actions in one canonical form, whatever the environment declares.

Bounds that environments declare for observations are never used: EnvPool's are often wrong
(tiny positive numbers up to the largest float), so every vector is an unbounded float32 Box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gs

from ..errors import FastwmError

ArrayTree: TypeAlias = Any  # arrays nested in dicts and tuples, each with a leading [num_envs]
ActSpace: TypeAlias = Space | dict[str, Space]
Convert: TypeAlias = Callable[[np.ndarray], np.ndarray]

RESERVED = ("action", "reward", "is_first", "is_last", "is_terminal")
_SUPPORTED = "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
_MIN_SIDE = 8  # smaller uint8 grids hold symbols, not pixels (MiniGrid's 7x7x3)


class ObsAdapter:
    """Flattens a batched observation into `{key: array}`.

    Images (uint8, 0 to 255, two sides of at least 8) come out as uint8 [B, H, W, C], resized to `size` when
    it is given; Discrete and MultiDiscrete as int64 from 0; all else as float32 of unchanged shape. Nested
    keys are joined by "/"; a bare observation is called "image" or "obs".
    """

    def __init__(self, space: Space, size: int | None) -> None:
        self.spaces: dict[str, Space] = {}
        self._leaves: list[tuple[str, tuple[Any, ...], Convert]] = []
        for path, leaf in _walk(space):
            canonical, convert = _obs_leaf(leaf, size)
            key = "/".join(map(str, path)) or ("image" if is_image(canonical) else "obs")
            if key in RESERVED or key in self.spaces:
                raise FastwmError(f"observation key {key!r} is taken; rename it in the environment")
            self.spaces[key] = canonical
            self._leaves.append((key, path, convert))

    def __call__(self, obs: ArrayTree) -> dict[str, np.ndarray]:
        out = {}
        for key, path, convert in self._leaves:
            value = obs
            for part in path:
                value = value[part]
            out[key] = convert(np.asarray(value))
        return out


class ActAdapter:
    """Checks a batched canonical action and turns it into what the environment takes.

    Canonical spaces: Box(-1, 1) float32 for continuous actions (values are clipped to it, then rescaled to
    the true bounds; unbounded dimensions pass through clipped), Discrete and MultiDiscrete from 0. A nested
    Dict or Tuple becomes a flat dict with "/" joined keys.
    """

    def __init__(self, space: Space, num_envs: int) -> None:
        self._raw, self._num_envs = space, num_envs
        self._leaves = {"/".join(map(str, path)): _act_leaf(leaf) for path, leaf in _walk(space)}
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


def is_image(space: Space) -> bool:
    """Whether a canonical observation space is an image."""
    return space.dtype == np.uint8


def _is_nested(space: Space) -> bool:
    return isinstance(space, (gs.Dict, gs.Tuple))


def _children(space: Space) -> Iterator[tuple[Any, Space]]:
    if isinstance(space, gs.Dict):
        yield from space.spaces.items()
    elif isinstance(space, gs.Tuple):
        yield from enumerate(space.spaces)


def _walk(space: Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Space]]:
    if not _is_nested(space):
        yield path, space
    for key, child in _children(space):
        yield from _walk(child, (*path, key))


def _nest(space: Space, flat: Mapping[str, np.ndarray], path: tuple[Any, ...] = ()) -> ArrayTree:
    if not _is_nested(space):
        return flat["/".join(map(str, path))]
    nested = {key: _nest(child, flat, (*path, key)) for key, child in _children(space)}
    return nested if isinstance(space, gs.Dict) else tuple(nested.values())


def _obs_leaf(space: Space, size: int | None) -> tuple[Space, Convert]:
    if isinstance(space, gs.Discrete):
        first = int(space.start)
        return gs.Discrete(int(space.n)), lambda x: x.astype(np.int64) - first
    if isinstance(space, gs.MultiDiscrete):
        start = space.start.astype(np.int64)
        return gs.MultiDiscrete(space.nvec), lambda x: x.astype(np.int64) - start
    if isinstance(space, gs.Box) and _looks_like_image(space):
        return _image_leaf(space.shape, size)
    if isinstance(space, (gs.Box, gs.MultiBinary)):
        return gs.Box(-np.inf, np.inf, space.shape, np.float32), lambda x: x.astype(np.float32)
    raise FastwmError(f"observations of {space} are not supported: {_SUPPORTED}")


def _looks_like_image(space: gs.Box) -> bool:
    # uint8 in 0..255 is Gymnasium's convention for pixels; a smaller range is a symbolic grid (Sokoban).
    if space.dtype != np.uint8 or len(space.shape) not in (2, 3) or space.high.max() < 255:
        return False
    height, width, _ = _hwc(space.shape)
    return min(height, width) >= _MIN_SIDE


def _hwc(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if shape[0] < shape[2]:  # the channel axis is the smaller end
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2]


def _image_leaf(shape: tuple[int, ...], size: int | None) -> tuple[Space, Convert]:
    height, width, channels = _hwc(shape)
    channels_first = len(shape) == 3 and shape[0] < shape[2]
    resized = size is not None and (height, width) != (size, size)

    def convert(x: np.ndarray) -> np.ndarray:
        x = x.transpose(0, 2, 3, 1) if channels_first else x.reshape(len(x), height, width, channels)
        return _resize(x, size) if resized and size else np.array(x, np.uint8, order="C")

    side = (size, size) if size is not None else (height, width)
    return gs.Box(0, 255, (*side, channels), np.uint8), convert


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    """Area-averages uint8 [B, H, W, C] to [B, size, size, C]."""
    chw = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    chw = torch.nn.functional.interpolate(chw, (size, size), mode="area")
    return chw.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


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
    raise FastwmError(f"actions of {space} are not supported: {_SUPPORTED}")


def _grid(sizes: np.ndarray, start: np.ndarray, dtype: Any) -> tuple[Space, Convert]:
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
