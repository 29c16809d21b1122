"""Checks of the arguments of `act` and `update`, made before anything is moved to a device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.errors import FastwmError
from fastwm.nn.spaces import SpaceDict, classes, is_image, shape

MODES = ("train", "eval", "random")


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"act: mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")


def check_observations(obs_space: SpaceDict, obs: Mapping[str, Any]) -> dict[str, Any]:
    """The observations of `obs_space` and `is_first`, [B, ...] each, of the kinds that the spaces say.

    Values on a GPU are not read, as that would wait for it.

    Raises:
        ValueError: for a key that is missing, another number of rows, another shape, or another kind of number.
        FastwmError: for a value that is not finite; names the key and the row.
    """
    keys = (*obs_space, "is_first")
    if missing := [key for key in keys if key not in obs]:
        raise ValueError(f"act: the observations lack {', '.join(missing)}; there are: {', '.join(obs)}")
    values = {key: x if isinstance(x := obs[key], Tensor) else np.asarray(x) for key in keys}
    first = values["is_first"]
    if first.ndim != 1:
        raise ValueError(f"act: is_first must be [B], one flag a row, got {list(first.shape)}")
    rows = len(first)
    for key, space in obs_space.items():
        value, wanted = values[key], (rows, *shape(space))
        if tuple(value.shape) != wanted:
            raise ValueError(f"act: expected {key} {list(wanted)} beside is_first [{rows}], got {list(value.shape)}")
        check_kind("act", key, space, value)
        check_values(key, space, value)
    return values


def check_kind(caller: str, key: str, space: spaces.Space, value: Any) -> None:
    """Images are uint8 and classes integers: floats would be misread."""
    dtype = str(value.dtype).removeprefix("torch.")
    if is_image(space) and dtype != "uint8":
        raise ValueError(f"{caller}: the image {key!r} must be uint8, 0 to 255, got {dtype}")
    if classes(space) and not dtype.startswith(("int", "uint", "bool")):
        raise ValueError(f"{caller}: {key!r} holds classes and must be of integers, got {dtype}")
    if dtype.startswith("complex") or dtype == "object":
        raise ValueError(f"{caller}: {key!r} must hold real numbers, got {dtype}")


def check_values(key: str, space: spaces.Space, value: Any) -> None:
    if is_image(space) or (isinstance(value, Tensor) and value.device.type != "cpu"):
        return
    value = value.numpy() if isinstance(value, Tensor) and value.dtype != torch.bfloat16 else value
    if classes(space):
        count = space.nvec if isinstance(space, spaces.MultiDiscrete) else classes(space)
        wrong = np.asarray((value < 0) | (value >= count))
    elif isinstance(value, Tensor):
        wrong = value.isfinite().logical_not().numpy()
    elif value.dtype.kind == "f":
        wrong = ~np.isfinite(value)
    else:
        return
    if wrong.any():
        row, *index = (int(i) for i in np.argwhere(wrong)[0])
        where = f"{key!r} of row {row}" + (f" at {index}" if index else "")
        given = value[(row, *index)]
        if classes(space):
            raise ValueError(f"act: {where} is {given}, but its space is {space}")
        raise FastwmError(f"act: the observation {where} is not finite ({given})")


def check_state(state: Mapping[str, Tensor], keys: tuple[str, ...], rows: int) -> None:
    """Refuse a state of another number of rows, which would be broadcast or fail deep inside."""
    if missing := [key for key in keys if key not in state]:
        raise ValueError(
            f"act: the state lacks {', '.join(missing)}; pass the one that the last `act` returned, or None"
        )
    for key in keys:
        if len(state[key]) != rows:
            raise ValueError(
                f"act: the state's {key} has {len(state[key])} rows, the observations have {rows}; pass the state that "
                "the last `act` of these environments returned, or None"
            )


def check_batch(leaves: SpaceDict, others: tuple[str, ...], batch: Mapping[str, Tensor]) -> None:
    """Replayed rows [1+T, B, ...] of all that an update reads; only shapes and dtypes are looked at.

    Raises:
        ValueError: for a key that is missing, another shape, or another kind of number.
    """
    if missing := [key for key in (*leaves, "reward", *others) if key not in batch]:
        raise ValueError(f"update: the batch lacks {', '.join(missing)}; there are: {', '.join(batch)}")
    time = tuple(batch["reward"].shape)
    if len(time) != 2 or time[0] < 2:
        raise ValueError(f"update: expected reward time-major [1+T, B] with T of at least 1, got {list(time)}")
    for key in (*leaves, *others):
        event = shape(leaves[key]) if key in leaves else tuple(batch[key].shape[2:])
        got = tuple(batch[key].shape)
        if got != time + event:
            hint = "; the batch must be time-major" if got == time[::-1] + event else ""
            raise ValueError(f"update: expected {key} {list(time + event)} beside reward {list(time)}, got {list(got)}"
                             + hint)  # fmt: skip
        if key in leaves:
            check_kind("update", key, leaves[key], batch[key])
