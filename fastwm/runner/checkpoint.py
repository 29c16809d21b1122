"""Checkpoints: weights as safetensors, everything else a resume needs beside them, written whole or not at all."""

import json
import logging
import math
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastwm.errors import FastwmError, Misfit
from fastwm.files import check, is_plain, read_json, regular, seal, unseal
from fastwm.runner.state import pack, unpack
from fastwm.writing import TEMPORARY, disk_errors, remove, remove_temporaries, sync

log = logging.getLogger("fastwm")

REPLACED, UNREADABLE = "old-", "unreadable-"
EXTRA = "_extra_state"
WEIGHTS, STATE, STATE_TENSORS = "agent.safetensors", "state.json", "state.safetensors"
META = {"step": int, "files": dict}
RUN_META = {"agent": str, "obs_space": dict, "act_space": dict, "oldest_row": int, "starts": int, "score": float,
            "shards": int}  # fmt: skip
SHARD = re.compile(r"^shard-\d{1,6}/")  # the folder of a shard's part
MAX_ENTRIES = 1 << 24  # of one observation or action: a Box takes ten bytes for each


def folder(logdir: Path) -> Path:
    return logdir / "checkpoints"


def checkpoints(logdir: Path) -> list[Path]:
    """All finished checkpoints of a run, newest first."""
    return sorted((p for p in folder(logdir).glob("*") if re.fullmatch("[0-9]{12,18}", p.name)), reverse=True)


def unfinished(logdir: Path, step: int) -> Path:
    """The folder of a checkpoint that `save` is writing."""
    return folder(logdir) / f"{TEMPORARY}{step:012d}"


def save(
    logdir: Path, step: int, agent: nn.Module, state: dict[str, Any], meta: dict[str, Any],
    write_more: Callable[[Path], dict[str, Any]] | None = None, keep: int = 2,
) -> Path:  # fmt: skip
    """Write a checkpoint and return its folder; the newest `keep` stay.

    `state` is what `pack` takes, `meta` is JSON; `write_more(path)` may put further files in and returns what
    `state["more"]` shall hold. The folder gets its name only when all of it is on disk.
    """
    final, temporary = folder(logdir) / f"{step:012d}", unfinished(logdir, step)
    clean(logdir)
    try:
        with disk_errors(final, "earlier checkpoints are untouched"):
            temporary.mkdir(parents=True)
            tensors = {key: value.contiguous() for key, value in agent.state_dict().items() if key != EXTRA}
            save_file(tensors, temporary / WEIGHTS)
            more = write_more(temporary) if write_more else {}
            tree, tensors = pack({**state, "extra": agent.get_extra_state(), "more": more})
            (temporary / STATE).write_text(json.dumps(tree))
            save_file(tensors, temporary / STATE_TENSORS)
            files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
            sums = {file.relative_to(temporary).as_posix(): checksum(file) for file in files}
            (temporary / "meta.json").write_text(seal({**meta, "step": step, "files": sums}))
            for written in temporary.rglob("*"):
                sync(written)
            if final.exists():
                final.rename(final.with_name(REPLACED + final.name))
            temporary.rename(final)
            sync(final.parent)
        for old in [*checkpoints(logdir)[keep:], *folder(logdir).glob(f"{UNREADABLE}*")]:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        clean(logdir)
    return final


def clean(logdir: Path) -> None:
    """Remove what a killed or failed `save` left; a checkpoint that it was about to replace gets its name back.

    Only for the process that holds the run.
    """
    for replaced in folder(logdir).glob(f"{REPLACED}*"):
        final = replaced.with_name(replaced.name.removeprefix(REPLACED))
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            with suppress(OSError):
                replaced.rename(final)
    remove_temporaries(folder(logdir))


def set_aside_newer(logdir: Path, used: Path | None) -> None:
    """Take the name from checkpoints newer than the one in use, which could not be read.

    They would push out good ones, and must not come back once the run has taken another course. The next `save`
    removes them.
    """
    for path in checkpoints(logdir):
        if used is None or path.name > used.name:
            aside = path.with_name(UNREADABLE + path.name)
            with disk_errors(path):
                remove(aside)
                path.rename(aside)


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def read_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint, after every file of it was found whole."""
    meta = describe(path)
    for name, expected in meta["files"].items():
        if checksum(regular(path / name)) != expected:
            raise FastwmError(f"checkpoint {path}: {name} is corrupted")
    return meta


def describe(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint, checked against its schema; the other files are not looked at."""
    meta = unseal(path / "meta.json", META, RUN_META)
    if f"{meta['step']:012d}" != path.name:
        raise FastwmError(f"checkpoint {path} was renamed: it is of step {meta['step']}")
    for name in meta["files"]:
        if not is_plain(SHARD.sub("", name)):
            raise FastwmError(f"checkpoint {path} names a file outside of itself: {name!r}")
    if "state.pt" in meta["files"]:
        raise FastwmError(f"checkpoint {path} is of an earlier version, whose state.pt is no longer read")
    check(meta["files"], dict.fromkeys((WEIGHTS, STATE, STATE_TENSORS, *meta["files"]), int), str(path / "meta.json"))
    return meta


def load_agent(path: Path, agent: nn.Module) -> dict[str, Any]:
    """Put the weights and the optimiser of a checkpoint into `agent`; returns the rest of its state."""
    device = next(agent.parameters()).device
    weights: dict[str, Any] = read_tensors(path / WEIGHTS, device)
    state = read_state(path, device)
    try:
        agent.load_state_dict(weights | {EXTRA: state.pop("extra")})
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        detail = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise Misfit(f"checkpoint {path} does not fit the settings given: {detail}") from error
    return state


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The parts of a checkpoint beside the weights."""
    tree, tensors = read_json(path / STATE), read_tensors(path / STATE_TENSORS, device)
    try:
        state: Any = unpack(tree, tensors)
    except RecursionError as error:
        raise FastwmError(f"{path / STATE} is damaged: it nests too deeply") from error
    if not isinstance(state, dict):
        raise FastwmError(f"{path / STATE} is damaged: expected an object")
    check(state, {"extra": dict, "more": dict}, str(path / STATE))
    return state


def read_tensors(path: Path, device: torch.device | str) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(regular(path), device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise FastwmError(f"{path} is damaged: {error}") from error
    return tensors


def check_fits(path: Path, build: Callable[[], nn.Module]) -> None:
    """The module that `build` makes has the weights of the checkpoint, name by name and shape by shape.

    It is made without memory, so that settings cannot ask for more of it than the checkpoint's weights take.
    """
    try:
        with torch.device("meta"):
            wanted = {name: list(p.shape) for name, p in build().named_parameters()}
        with safe_open(regular(path / WEIGHTS), "pt") as file:
            given = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError, AssertionError, SafetensorError) as error:
        detail = str(error).splitlines() or [type(error).__name__]
        raise Misfit(f"checkpoint {path} does not fit the settings given: {detail[0]}") from error
    for name, shape in wanted.items():
        if given.get(name) != shape:
            raise Misfit(
                f"checkpoint {path} does not fit the settings given: {name} is {given.get(name, 'missing')}, "
                f"the settings make it {shape}"
            )


def newest(logdir: Path, use: Callable[[Path], Any]) -> Any:
    """`use(path)` of the newest checkpoint that can be read; broken ones are passed over with a warning.

    Returns None where there is no checkpoint; raises FastwmError where there are only broken ones.
    """
    candidates = checkpoints(logdir)
    for path in candidates:
        try:
            read_meta(path)
        except FastwmError as error:
            log.warning("%s; trying the one before", error)
            continue
        return use(path)
    if candidates:
        raise FastwmError(f"no checkpoint in {folder(logdir)} can be read; remove the folder to start again")
    return None


def oldest_row(logdir: Path) -> int:
    """The oldest replay row that a kept checkpoint still needs."""
    rows = []
    for path in checkpoints(logdir):
        with suppress(FastwmError):  # a broken one needs none
            rows.append(int(describe(path)["oldest_row"]))
    return min(rows)


def rng_state() -> dict[str, Any]:
    """States of torch's generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`; anything else is a FastwmError."""
    try:
        torch.set_rng_state(state["cpu"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FastwmError(f"the saved state of torch's generators is damaged: {error}") from error


def space_to_json(space: Any) -> Any:
    """A space, or a dictionary of them, as JSON."""
    if isinstance(space, dict):
        return {"dict": {key: space_to_json(leaf) for key, leaf in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multidiscrete": space.nvec.tolist()}
    return {"box": list(space.shape), "dtype": str(space.dtype)}


def in_words(space: dict[str, Any] | None) -> str:
    """A leaf space in JSON, for messages."""
    match space:
        case {"box": shape, "dtype": dtype}:
            return f"{dtype} {'x'.join(map(str, shape)) or 'number'}"
        case {"discrete": n}:
            return f"Discrete({n})"
        case {"multidiscrete": nvec}:
            return f"MultiDiscrete({nvec})"
    return "missing"


def check_spaces(meta: Mapping[str, Any], obs_space: Any, act_space: Any, env: str) -> None:
    """Raise FastwmError where an environment shows or takes something else than what the agent was trained on."""
    for name, what, space in (("obs_space", "observation", obs_space), ("act_space", "action", act_space)):
        wanted, given = (side.get("dict", {"action": side}) for side in (meta[name], space_to_json(space)))
        for key in sorted(wanted.keys() | given.keys()):
            if wanted.get(key) != given.get(key):
                raise FastwmError(
                    f"{what} {key!r} of {env} is {in_words(given.get(key))}, but this run was trained with "
                    f"{in_words(wanted.get(key))}: give the environment it was trained on, or another logdir"
                )


def space_from_json(value: Any) -> Any:
    """The inverse of `space_to_json`; bounds of boxes are those of their dtype. Anything else is a FastwmError."""
    match value:
        case {"dict": dict(leaves)}:
            return {key: space_from_json(leaf) for key, leaf in leaves.items()}
        case {"discrete": int(n)} if 0 < n <= MAX_ENTRIES:
            return spaces.Discrete(n)
        case {"multidiscrete": list(nvec)} if (counts := _counts(nvec)) is not None:
            return spaces.MultiDiscrete(counts)
        case {"box": list(shape), "dtype": str(name)} if _is_shape(shape) and re.fullmatch(
            "u?int(8|16|32|64)|float(32|64)", name
        ):
            dtype = np.dtype(name)
            limits = np.iinfo(dtype) if dtype.kind != "f" else None
            low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
            return spaces.Box(low, high, tuple(shape), dtype.type)
    raise FastwmError(f"no space of observations or actions: {str(value)[:100]}")


def _counts(nvec: list[Any]) -> np.ndarray | None:
    """Numbers of classes as an array, if that is what they are."""
    try:
        counts = np.array(nvec)
    except ValueError:
        return None
    whole = counts.dtype.kind == "i" and counts.size > 0 and counts.min() > 0 and counts.max() <= MAX_ENTRIES
    return counts if whole else None


def _is_shape(values: list[Any]) -> bool:
    whole = len(values) <= 32 and all(type(n) is int and 0 <= n <= MAX_ENTRIES for n in values)
    return whole and math.prod(values) <= MAX_ENTRIES
