"""Observation and action spaces as the networks see them: flat float vectors and channels-last images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.errors import FastwmError
from fastwm.extras import Missing
from fastwm.row import OWN_KEYS

try:
    from gymnasium import spaces
except ModuleNotFoundError:
    spaces = Missing("gymnasium", "agents", "a network of observations or actions")  # type: ignore[assignment]

SpaceDict: TypeAlias = "dict[str, spaces.Space]"


class SpaceError(FastwmError, ValueError):
    """Spaces that an agent cannot work with."""


def row_spaces(
    obs: spaces.Space | Mapping[str, spaces.Space], act: spaces.Space | Mapping[str, spaces.Space],
    latents: Iterable[str] = (), alone: str = "obs",
) -> tuple[SpaceDict, SpaceDict]:  # fmt: skip
    """Observation and action spaces by key; a lone observation is called `alone`, a lone action "action".

    A row of replay holds observations, actions, latents and its own keys side by side: a name that two of them share
    is a SpaceError.
    """
    obs_space, act_space = as_dict(obs, alone), as_dict(act, "action")
    owners = dict.fromkeys(OWN_KEYS, "of every row") | dict.fromkeys(latents, "of the agent's latents")
    for what, keys in (("observation", obs_space), ("action", act_space)):
        for key in keys:
            if key in owners:
                leave = f", or leave it out by --keys {key} out" if what == "observation" else ""
                raise SpaceError(f"{what} {key!r} has a name {owners[key]}: rename it in the environment{leave}")
            owners[key] = f"of an {what}"
    return obs_space, act_space


def as_dict(space: spaces.Space | Mapping[str, spaces.Space], name: str) -> SpaceDict:
    """A dictionary of leaf spaces; a lone space becomes `{name: space}`."""
    if isinstance(space, spaces.Dict):
        space = space.spaces
    result = dict(space) if isinstance(space, Mapping) else {name: space}
    for key, leaf in result.items():
        if not isinstance(leaf, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
            raise SpaceError(f"space {key!r}: Box, Discrete and MultiDiscrete are supported, got {leaf}")
    return result


def is_image(space: spaces.Space) -> bool:
    """Channels-last uint8 images `[H, W, C]`."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def classes(space: spaces.Space) -> int:
    """Number of classes of a discrete space (every entry of a MultiDiscrete gets the largest), 0 if continuous."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.max())
    return 0


def shape(space: spaces.Space) -> tuple[int, ...]:
    """Shape of one value; `()` for scalars and single choices."""
    return tuple(space.shape or ())


def width(space: spaces.Space) -> int:
    """Length of a value once encoded."""
    return prod(shape(space)) * (classes(space) or 1)


def total_width(space: SpaceDict) -> int:
    return sum(width(leaf) for leaf in space.values())


def in_order(space: SpaceDict, order: Sequence[str] = ()) -> SpaceDict:
    """The leaves in the order of `order`, which may name others too; by name where it is empty.

    Raises:
        SpaceError: for a leaf that a given order lacks.
    """
    if not order:
        return {key: space[key] for key in sorted(space)}
    if missing := [key for key in space if key not in order]:
        raise SpaceError(f"the order {', '.join(order)} lacks the observation {', '.join(map(repr, missing))}")
    return {key: space[key] for key in dict.fromkeys(order) if key in space}


def encode(space: SpaceDict, values: Mapping[str, Tensor], order: Sequence[str] = ()) -> Tensor:
    """Concatenate the values, in `order` or sorted by name, into one float vector [..., width].

    Discrete ones become one-hot.
    """
    parts = []
    for key in order or sorted(space):
        value, leaf = values[key], space[key]
        batch = value.shape[: value.ndim - len(shape(leaf))]
        if classes(leaf):
            value = F.one_hot(value.long(), classes(leaf))
        parts.append(value.float().reshape(*batch, width(leaf)))
    return torch.cat(parts, -1)


def decode(space: SpaceDict, encoded: Tensor) -> dict[str, Tensor]:
    """The inverse of `encode`: class indices int64 and reals."""
    parts = encoded.split([width(space[key]) for key in sorted(space)], -1)
    values = {}
    for key, part in zip(sorted(space), parts):
        leaf, batch = space[key], encoded.shape[:-1]
        if classes(leaf):
            values[key] = part.reshape(*batch, *shape(leaf), classes(leaf)).argmax(-1)
        else:
            values[key] = part.reshape(*batch, *shape(leaf))
    return values


def random_values(space: spaces.Space, batch: int, device: torch.device) -> Tensor:
    """Uniform values [batch, *shape]: classes, or reals in [-1, 1]."""
    draw = torch.rand(batch, *shape(space), device=device)
    if isinstance(space, spaces.MultiDiscrete):
        return (draw * torch.as_tensor(space.nvec, device=device)).long()
    return (draw * classes(space)).long() if classes(space) else 2 * draw - 1
