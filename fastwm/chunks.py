"""Folders of stored rows: recorded by an actor, or made from a dataset, and read to learn from.

A chunk is a safetensors file `chunk-00000000.safetensors` of rows in order: {key: [rows, streams, ...]}, as in the
checkpoints of a replay, without latents. `rows.json` holds the spaces.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FastwmError
from .files import regular, seal, unseal
from .writing import replacing, write_text

SPACES = "rows.json"
FLAGS = ("is_first", "is_last", "is_terminal")


class ChunkWriter:
    """Writes rows [streams, ...] into chunks of `rows` rows, from chunk `number` on."""

    def __init__(self, folder: Path, rows: int, number: int = 0):
        self.folder, self.rows, self.number = folder, rows, number
        self.held: list[Mapping[str, np.ndarray | Tensor]] = []
        self.note: dict[str, str] = {}

    def add(self, row: Mapping[str, np.ndarray | Tensor], **note: int) -> None:
        """Append a row; `note` is kept in its chunk, as it was at the chunk's first row."""
        if not self.held:
            self.note = {key: str(value) for key, value in note.items()}
        self.held.append({key: torch.as_tensor(value).clone() for key, value in row.items()})
        if len(self.held) >= self.rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows at hand, whole or not at all."""
        if self.held:
            tensors = {key: torch.stack([row[key] for row in self.held]).contiguous() for key in self.held[0]}  # type: ignore[misc]
            with replacing(chunk_path(self.folder, self.number)) as temporary:
                save_file(tensors, temporary, self.note)
            self.number += 1
            self.held = []


def chunk_path(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:08d}.safetensors"


def chunk_numbers(folder: Path) -> list[int]:
    """The numbers of the chunks that are there, in order."""
    found = (re.fullmatch(r"chunk-(\d{8})\.safetensors", path.name) for path in folder.glob("chunk-*"))
    return sorted(int(match[1]) for match in found if match)


def read_chunk(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The rows of a chunk and the notes in it, checked to be rows.

    Raises:
        FastwmError: the file is missing or damaged, or its arrays are no rows.
    """
    try:
        with safe_open(regular(path), "pt") as file:
            rows, note = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FastwmError(f"{path} is damaged: {error}") from error
    for key in (*FLAGS, "reward"):
        if key not in rows or (key != "reward" and rows[key].dtype != torch.bool) or rows[key].dim() != 2:
            raise FastwmError(f"{path} holds no rows: {key!r} is missing, or is not [rows, streams]")
    shape = rows["reward"].shape
    if wrong := [key for key, value in rows.items() if value.shape[:2] != shape]:
        raise FastwmError(f"{path} is damaged: {wrong[0]} is {list(rows[wrong[0]].shape)} beside reward {list(shape)}")
    return rows, note


def rows_of(chunk: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The rows [streams, ...] one by one."""
    for i in range(len(chunk["reward"])):
        yield {key: value[i] for key, value in chunk.items()}


def write_spaces(folder: Path, obs_space: Any, act_space: Any) -> None:
    """Make `folder` one of stored rows; the spaces are JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SPACES, seal({"obs_space": obs_space, "act_space": act_space}))


def read_spaces(folder: Path) -> tuple[Any, Any]:
    """The spaces of a folder of stored rows, as JSON."""
    if not (folder / SPACES).is_file():
        raise FastwmError(
            f"{folder} holds no stored rows: give the folder of a run, or one that `fastwm import` has made"
        )
    values = unseal(folder / SPACES, {"obs_space": dict, "act_space": dict})
    return values["obs_space"], values["act_space"]


def read_number(path: Path) -> int:
    """A number that another process may be writing; 0 where there is none yet."""
    try:
        return int(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return 0
