"""Observations in one canonical form, whatever the environment declares.

Bounds that environments declare for vectors are never used: EnvPool's are often wrong (tiny positive numbers up to the
largest float), so every vector is an unbounded float32 Box.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gs

from ..errors import FastwmError
from ..row import OWN_KEYS
from .spaces import SUPPORTED, ArrayTree, Path, key_of, walk

Convert: TypeAlias = Callable[[np.ndarray], np.ndarray]

RESERVED = ("action", *OWN_KEYS)
KINDS = "image, image:hwc, image:chw, vector, symbols, symbols:N or out"
EXACT = 2**24  # float32 holds every integer up to here
MIN_SIDE = 8  # smaller uint8 grids hold symbols, not pixels (MiniGrid's 7x7x3)
CHANNELS = (1, 3, 4)

log = logging.getLogger("fastwm")


@dataclass(frozen=True)
class Kind:
    """The kind of an observation: an image of a layout, a vector of numbers, symbols of so many classes."""

    name: Literal["image", "vector", "symbols"]
    layout: Literal["", "hwc", "chw"] = ""
    classes: int = 0
    guessed: bool = False


@dataclass(frozen=True)
class Leaf:
    """One observation: where it is in the environment's tree, how it is declared, and how it is converted."""

    key: str
    path: Path
    declared: Space
    kind: Kind
    space: Space
    convert: Convert

    def batch(self, tree: ArrayTree, num_envs: int) -> np.ndarray:
        """This observation of all environments [num_envs, ...], as it was declared."""
        assert self.declared.shape is not None
        value = np.asarray(part_of(tree, self.path, self.key))
        if value.shape[1:] == self.declared.shape and value.shape[:1] not in ((), (num_envs,)):
            raise FastwmError(f"{num_envs} environments gave {len(value)} observations: only one player each works")
        check_declared(f"observation {self.key!r}", value, (num_envs, *self.declared.shape), self.declared)
        return value

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.space.shape or ())) or "1"
        classes = f" of {_class_count(self.space)} classes" if self.kind.name == "symbols" else ""
        return f"{self.key}: {self.kind.name} {sizes}{classes}{' (guessed)' if self.kind.guessed else ''}"


class ObsAdapter:
    """Flattens a batched observation into `{key: array}`.

    Images come out as uint8 [B, H, W, C], resized to `size` when it is given; symbols as int64 from 0; vectors as
    float32 of unchanged shape. Nested keys are joined by "/"; a bare observation is called "image" or "obs". `keys`
    says what a key is; what it does not name is guessed from the declared space.
    """

    def __init__(self, space: Space, size: int | None, keys: Mapping[str, str] | None = None) -> None:
        check_size(size)
        given = dict(keys or {})
        used: set[str] = set()
        self.leaves: dict[str, Leaf] = {}
        self.left_out: list[str] = []
        for path, declared in walk(space):
            names = (key_of(path),) if path else ("obs", "image")
            name = next((name for name in names if name in given), names[0])
            used.add(name)
            if given.get(name) == "out":
                self.left_out.append(name)
                continue
            kind = parse_kind(name, given[name], declared) if name in given else guess_kind(declared)
            key = name if path else "image" if kind.name == "image" else "obs"
            if key in RESERVED:
                raise FastwmError(
                    f"observation key {key!r} is reserved ({', '.join(RESERVED)}): "
                    f"rename it in the environment, or leave it out: --keys {key} out"
                )
            if key in self.leaves:
                raise FastwmError(f"two observations are called {key!r} once nested keys are joined by '/': rename one")
            self.leaves[key] = Leaf(key, path, declared, kind, *_canonical(key, kind, declared, size))
        if unknown := sorted(given.keys() - used):
            raise FastwmError(
                f"keys names {', '.join(unknown)}, but the observations are {', '.join(map(repr, self.leaves))}"
            )
        if not self.leaves:
            raise FastwmError("no observation is left: the environment has none, or all of them are left out")
        for leaf in self.leaves.values():
            if leaf.kind.guessed:
                warn_once(
                    f"observation {leaf.key!r} ({declared_as(leaf.declared)}) is taken for {_named(leaf.kind)}, which "
                    f"is a guess; say what it is by --keys {leaf.key} KIND, which is {KINDS}"
                )

    @property
    def spaces(self) -> dict[str, Space]:
        return {key: leaf.space for key, leaf in self.leaves.items()}

    def __call__(self, obs: ArrayTree, num_envs: int) -> dict[str, np.ndarray]:
        return {key: leaf.convert(leaf.batch(obs, num_envs)) for key, leaf in self.leaves.items()}

    def warn_of_large_numbers(self, obs: ArrayTree) -> None:
        """Warns of numbers so large that float32 loses their differences (clocks, counters)."""
        for leaf in self.leaves.values():
            if leaf.kind.name == "vector" and leaf.declared.dtype not in (np.float32, np.float16):
                value = np.asarray(part_of(obs, leaf.path, leaf.key), np.float64)
                largest = np.abs(value).max(initial=0)
                if EXACT < largest < np.inf:
                    warn_once(
                        f"observation {leaf.key!r} holds {largest:.0f}: vectors are kept in float32, which loses "
                        f"differences of numbers beyond {EXACT:,}; subtract an offset, or scale it"
                    )

    def describe(self) -> str:
        """The kind that each key was taken for."""
        left_out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return ", ".join(map(str, self.leaves.values())) + left_out


def check_size(size: Any) -> None:
    """Raises FastwmError unless `size` is a number of pixels, or None."""
    if size is not None and not (isinstance(size, int) and size >= 1):
        raise FastwmError(f"size must be an integer of at least 1, or null for images as they are, got {size!r}")


@functools.cache
def warn_once(text: str) -> None:
    """The same warning is given once a process, however many environments are made."""
    log.warning("%s", text)


def part_of(tree: ArrayTree, path: Path, key: str) -> Any:
    """The leaf of a nested observation."""
    try:
        for part in path:
            tree = tree[part]
    except (KeyError, IndexError, TypeError) as error:
        raise FastwmError(f"observation {key!r} is declared, but did not arrive ({type(error).__name__})") from None
    return tree


def check_declared(name: str, value: np.ndarray, shape: tuple[int, ...], declared: Space) -> None:
    """Raises FastwmError where an array's shape is not the declared one, or its dtype does not cast to it."""
    dtype = declared.dtype
    if value.shape != shape or (value.dtype != dtype and not np.can_cast(value.dtype, dtype, "same_kind")):  # type: ignore[arg-type]
        raise FastwmError(
            f"{name} arrived as {value.dtype} {value.shape}, but its space declares {dtype} {shape}: "
            "correct the environment's observation_space, or what it returns"
        )


def parse_kind(key: str, text: str, space: Space) -> Kind:
    """The kind that a user gives a key, such as `image:chw` or `symbols:11`, where it fits the space."""
    match = re.fullmatch(r"(image)(?::(hwc|chw))?|(vector)|(symbols)(?::([1-9]\d*))?", str(text))
    if match is None:
        raise FastwmError(f"keys: {key!r} is given as {text!r}, which is none of {KINDS}")
    image, layout, vector, _, classes = match.groups()
    if vector:
        return Kind("vector")
    if image:
        if not isinstance(space, gs.Box) or len(space.shape) not in (2, 3) or (layout and len(space.shape) == 2):
            raise FastwmError(
                f"keys: {key!r} is {declared_as(space)}, which is no {text}: images have 2 or 3 dimensions"
            )
        return Kind("image", layout or guess_layout(space.shape)[0])  # type: ignore[arg-type]
    if isinstance(space, gs.Box) and not np.issubdtype(space.dtype, np.integer):
        raise FastwmError(f"keys: {key!r} is {declared_as(space)}, but symbols are integers")
    return Kind("symbols", classes=int(classes or 0))


def guess_kind(space: Space) -> Kind:
    """The kind that a space usually holds. Gymnasium's convention for pixels is uint8 in 0..255."""
    if isinstance(space, (gs.Discrete, gs.MultiDiscrete)):
        return Kind("symbols")
    if not isinstance(space, gs.Box) or len(space.shape) not in (2, 3):
        return Kind("vector", guessed=isinstance(space, gs.Box) and len(space.shape) > 3)
    layout, certain = guess_layout(space.shape)
    height, width, _ = _sides(space.shape, layout)
    if min(height, width) >= MIN_SIDE:
        if space.dtype == np.uint8 and space.high.max() == 255:
            return Kind("image", layout, guessed=not certain)
        bounds = {float(space.low.min()), float(space.high.max())}
        if len(space.shape) == 3 and certain and bounds in ({0, 1}, {-1, 1}, {0, 255}):
            return Kind("image", layout, guessed=True)
    picture = len(space.shape) == 3 and min(height, width) >= MIN_SIDE
    return Kind("vector", guessed=picture or bool(np.issubdtype(space.dtype, np.integer)))


def guess_layout(shape: Sequence[int]) -> tuple[Literal["", "hwc", "chw"], bool]:
    """Where the channels are, and whether that is certain."""
    if len(shape) == 2:
        return "", True
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if first != last:
        return ("chw" if first else "hwc"), True
    if shape[0] == shape[1]:
        return "hwc", False
    return ("chw" if shape[1] == shape[2] or shape[0] < shape[2] else "hwc"), False


def declared_as(space: Space) -> str:
    """`uint8 64x64x3 in 0..255`."""
    if not isinstance(space, gs.Box):
        return str(space)
    sizes, bounds = "x".join(map(str, space.shape)) or "number", ""
    if space.low.size:
        bounds = f" in {space.low.min():g}..{space.high.max():g}"
    return f"{space.dtype} {sizes}{bounds}"


def _named(kind: Kind) -> str:
    return {"image": "an image", "vector": "a vector", "symbols": "symbols"}[kind.name] + (
        f" ({kind.layout})" if kind.layout else ""
    )


def _sides(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """Height, width, channels."""
    if layout == "chw":
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2] if layout else 1


def _canonical(key: str, kind: Kind, space: Space, size: int | None) -> tuple[Space, Convert]:
    if not isinstance(space, (gs.Box, gs.Discrete, gs.MultiDiscrete, gs.MultiBinary)):
        raise FastwmError(f"observations of {space} are not supported: {SUPPORTED}; or leave it out: --keys {key} out")
    if kind.name == "image":
        return _image(key, space, kind.layout, size)  # type: ignore[arg-type]
    if kind.name == "symbols":
        return _symbols(key, space, kind.classes)
    assert space.shape is not None
    return gs.Box(-np.inf, np.inf, space.shape, np.float32), lambda x: x.astype(np.float32)


def _symbols(key: str, space: Space, classes: int) -> tuple[Space, Convert]:
    """Indices from 0, checked against their number of classes."""
    assert space.shape is not None
    if isinstance(space, (gs.Discrete, gs.MultiDiscrete)):
        first, sizes = np.asarray(space.start), np.asarray(space.n if isinstance(space, gs.Discrete) else space.nvec)
    elif isinstance(space, gs.Box):
        first, sizes = space.low.astype(np.int64), space.high.astype(np.int64) - space.low.astype(np.int64) + 1
    else:
        first, sizes = np.zeros(space.shape, np.int64), np.full(space.shape, 2)
    if classes:
        first, sizes = np.zeros_like(first), np.full_like(sizes, classes)
    if (sizes > EXACT).any() or (sizes < 1).any():
        raise FastwmError(
            f"observation {key!r} is {declared_as(space)}: say how many classes it has, --keys {key} symbols:N"
        )
    first = first.astype(np.int64)

    def convert(x: np.ndarray) -> np.ndarray:
        index = x.astype(np.int64) - first
        wrong = (index < 0) | (index >= sizes)
        if wrong.any():
            env, *entry = np.argwhere(wrong)[0]
            raise FastwmError(
                f"observation {key!r} of environment {env} is {x[(env, *entry)]}, out of range: {space} has "
                f"{sizes[tuple(entry)]} classes from {first[tuple(entry)]}"
            )
        return index

    return (gs.MultiDiscrete(sizes) if space.shape else gs.Discrete(int(sizes))), convert


def _image(key: str, space: gs.Box, layout: str, size: int | None) -> tuple[Space, Convert]:
    height, width, channels = _sides(space.shape, layout)
    resized = size is not None and (height, width) != (size, size)
    pixels = _pixels(key, space)

    def convert(x: np.ndarray) -> np.ndarray:
        x = x.transpose(0, 2, 3, 1) if layout == "chw" else x.reshape(len(x), height, width, channels)
        x = pixels(x)
        return _resize(x, size) if resized and size else np.array(x, np.uint8, order="C")

    side = (size, size) if size is not None else (height, width)
    return gs.Box(0, 255, (*side, channels), np.uint8), convert


def _pixels(key: str, space: gs.Box) -> Convert:
    """Values in the declared bounds, scaled to 0..255 and rounded. uint8 is taken as it is."""
    if space.dtype == np.uint8:
        return lambda x: x
    low, high = float(space.low.min()), float(space.high.max())
    if not high - low < EXACT:
        raise FastwmError(f"observation {key!r} is {declared_as(space)}: an image needs bounds, such as 0..1 or 0..255")
    scale, slack = 255 / (high - low), 1e-3 * (high - low)

    def convert(x: np.ndarray) -> np.ndarray:
        least, most = x.min(), x.max()
        if not (low - slack <= least and most <= high + slack):  # NaN too
            raise FastwmError(f"image {key!r} holds {least:g} to {most:g}, but its space declares {low:g} to {high:g}")
        return np.rint((x.astype(np.float32) - low) * scale).clip(0, 255).astype(np.uint8)

    return convert


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    """Area-averages uint8 [B, H, W, C] to [B, size, size, C]."""
    chw = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    chw = torch.nn.functional.interpolate(chw, (size, size), mode="area")
    return chw.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _class_count(space: Space) -> int:
    return int(space.n if isinstance(space, gs.Discrete) else space.nvec.max(initial=0))  # type: ignore[attr-defined]
