"""Checkpoints: weights as safetensors, everything else a resume needs beside them, written whole or not at all."""

import json
import logging
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import nn

from fastwm.errors import FastwmError
from fastwm.writing import TEMPORARY, disk_errors, remove_temporaries, sync

log = logging.getLogger("fastwm")

KEEP = 2
REPLACED, UNREADABLE = "old-", "unreadable-"
EXTRA = "_extra_state"


def folder(logdir: Path) -> Path:
    return logdir / "checkpoints"


def checkpoints(logdir: Path) -> list[Path]:
    """All finished checkpoints of a run, newest first."""
    return sorted((p for p in folder(logdir).glob("*") if p.name.isdigit()), reverse=True)


def save(
    logdir: Path, step: int, agent: nn.Module, state: dict[str, Any], meta: dict[str, Any],
    write_more: Callable[[Path], dict[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint and return its folder.

    `state` is what `torch.load(weights_only=True)` can read back, `meta` is JSON; `write_more(path)` may put further
    files in and returns what `state["more"]` shall hold. The folder gets its name only when all of it is on disk.
    """
    final = folder(logdir) / f"{step:012d}"
    temporary = folder(logdir) / f"{TEMPORARY}{step:012d}"
    clean(logdir)
    try:
        with disk_errors(final, "earlier checkpoints are untouched"):
            temporary.mkdir(parents=True)
            tensors = {key: value.contiguous() for key, value in agent.state_dict().items() if key != EXTRA}
            save_file(tensors, temporary / "agent.safetensors")
            more = write_more(temporary) if write_more else {}
            torch.save({**state, "extra": agent.get_extra_state(), "more": more}, temporary / "state.pt")
            sums = {file.name: checksum(file) for file in sorted(temporary.iterdir())}
            (temporary / "meta.json").write_text(json.dumps({**meta, "step": step, "files": sums}, indent=1))
            for file in temporary.iterdir():
                sync(file)
            if final.exists():
                final.rename(final.with_name(REPLACED + final.name))
            temporary.rename(final)
            sync(final.parent)
        for old in [*checkpoints(logdir)[KEEP:], *folder(logdir).glob(f"{UNREADABLE}*")]:
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
            path.rename(path.with_name(UNREADABLE + path.name))


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def read_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint, after every file of it was found whole."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
        for name, expected in meta["files"].items():
            if checksum(path / name) != expected:
                raise FastwmError(f"checkpoint {path}: {name} is corrupted")
    except (OSError, ValueError, KeyError) as error:
        raise FastwmError(f"checkpoint {path} is incomplete ({error})") from error
    return meta


def load_agent(path: Path, agent: nn.Module) -> dict[str, Any]:
    """Put the weights and the optimiser of a checkpoint into `agent`; returns the rest of its state."""
    device = next(agent.parameters()).device
    tensors: dict[str, Any] = load_file(path / "agent.safetensors", device=str(device))
    state: dict[str, Any] = torch.load(path / "state.pt", map_location=device, weights_only=True)
    try:
        agent.load_state_dict(tensors | {EXTRA: state.pop("extra")})
    except (RuntimeError, KeyError, ValueError) as error:
        detail = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise FastwmError(f"checkpoint {path} does not fit the settings given: {detail}") from error
    return state


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
    return min(int(json.loads((path / "meta.json").read_text())["oldest_row"]) for path in checkpoints(logdir))


def rng_state() -> dict[str, Any]:
    """States of torch's generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def space_to_json(space: Any) -> Any:
    """A space, or a dictionary of them, as JSON."""
    if isinstance(space, dict):
        return {"dict": {key: space_to_json(leaf) for key, leaf in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multidiscrete": space.nvec.tolist()}
    return {"box": list(space.shape), "dtype": str(space.dtype)}


def space_from_json(value: dict[str, Any]) -> Any:
    """The inverse of `space_to_json`; bounds of boxes are those of their dtype."""
    if "dict" in value:
        return {key: space_from_json(leaf) for key, leaf in value["dict"].items()}
    if "discrete" in value:
        return spaces.Discrete(value["discrete"])
    if "multidiscrete" in value:
        return spaces.MultiDiscrete(np.array(value["multidiscrete"]))
    dtype = np.dtype(value["dtype"])
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, tuple(value["box"]), dtype.type)
    limits = np.iinfo(dtype)
    return spaces.Box(limits.min, limits.max, tuple(value["box"]), dtype.type)
