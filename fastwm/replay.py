"""Experience replay: ring buffers in CPU memory, sampled as time-major windows, resumable to the bit.

One row is one observation of every environment. Rows are counted from 0 without end ("absolute"); row n lives
in slot n % rows. The id of a row of one environment is `n * num_envs + env`.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import FastwmError
from .extras import needs
from .files import Kinds, check, is_plain, regular

with needs("agents", "fastwm.replay"):
    import safetensors.torch
    from safetensors import SafetensorError

    from .writing import remove_temporaries, replacing

Row: TypeAlias = Mapping[str, np.ndarray | Tensor]


class Field(Protocol):
    """Anything of a shape and a dtype: a Gymnasium space, an array, a tensor."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


SAVED: Mapping[str, Kinds] = dict.fromkeys(("num_envs", "length", "rows", "chunk_rows", "added", "oldest"), int) | {
    "queue": list, "generator": Tensor, "chunks": dict, "files": dict}  # fmt: skip


class Replay:
    """The last `capacity` rows of `num_envs` streams, sampled uniformly in windows of `length` rows.

    Windows may cross episode ends (`is_first` does the resetting) but never the ring's head. With `online`,
    each stream is also cut into windows that do not overlap and are served once each before any uniform one.
    As in DreamerV3, with rows counted from 0, row n queues the window n - length + 1 .. n if n is a positive
    multiple of `length`: row 0 is in no such window, and 2 * length + 1 rows queue two. (With length 1, row 0
    too.) A queued window that has been overwritten is dropped.

    capacity: rows summed over environments. Memory is taken at the first `add`, and FastwmError raised if it
        is more than the machine has left.
    prioritize_ends: a drawn window that would cross the end of an episode is moved back to end with it, so that ends
        are drawn more often (DreamerV2 on Atari). Windows then cross an end only where the episode is shorter than they
        are, or its start no longer held.
    latent_keys: the only keys that `write_back` may change.
    chunk_rows: rows (of all environments) in one file of a checkpoint.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        length: int,
        online: bool = True,
        seed: int = 0,
        latent_keys: Iterable[str] = ("deter", "stoch"),
        chunk_rows: int = 1024,
        prioritize_ends: bool = False,
    ) -> None:
        self.rows = capacity // num_envs
        if not 1 <= length <= self.rows:
            raise ValueError(f"capacity {capacity} / {num_envs} envs holds no window of length {length}")
        self.num_envs, self.length, self.online = num_envs, length, online
        self.prioritize_ends = prioritize_ends
        self.added = 0  # rows ever added to each stream
        self._first = 0  # no row before this one is held, whatever the ring's size
        self._latent_keys = frozenset(latent_keys)
        self._chunk_rows = chunk_rows
        self._data: dict[str, Tensor] = {}  # [rows, num_envs, ...]
        self._queue: deque[int] = deque()  # ids of the first rows of online windows
        self._generator = torch.Generator().manual_seed(seed)
        self._saved: dict[int, int] = {}  # number of a chunk on disk -> checksum of its file

    @property
    def oldest(self) -> int:
        """Absolute number of the oldest row still held."""
        return max(self._first, self.added - self.rows)

    def __len__(self) -> int:
        """Number of windows that `sample` can choose from, over all environments."""
        return max(0, self.added - self.oldest - self.length + 1) * self.num_envs

    def reseed(self, seed: int) -> None:
        """Restarts the generator that draws the windows."""
        self._generator.manual_seed(seed)

    def add(self, row: Row) -> None:
        """Appends one row of every environment: {key: [num_envs, ...]}, with `is_first` and `is_last` bool.

        Raises as `accept`, and changes nothing then.
        """
        self.append(self.accept(row))

    def accept(self, row: Row) -> dict[str, Tensor]:
        """The row as `append` takes it.

        Raises ValueError if a key, shape or dtype differs from the first row's, or a value is NaN; FastwmError where
        there is not the memory.
        """
        tensors = {key: torch.as_tensor(value).detach().cpu() for key, value in row.items()}
        for key, value in tensors.items():
            if value.shape[:1] != (self.num_envs,):
                raise ValueError(f"{key!r} has shape {tuple(value.shape)}, expected ({self.num_envs}, ...)")
            if value.is_floating_point() and value.isnan().any():
                raise ValueError(f"{key!r} holds NaN")
        if not self._data:
            self._allocate(tensors)
        self._check(tensors)
        return tensors

    def append(self, tensors: Mapping[str, Tensor]) -> None:
        """Appends an accepted row."""
        slot = self.added % self.rows
        for key, value in tensors.items():
            self._data[key][slot].copy_(value)
        row_number, self.added = self.added, self.added + 1
        if self.online and row_number >= self.length - 1 and row_number % self.length == 0:
            start = (row_number - self.length + 1) * self.num_envs
            self._queue.extend(range(start, start + self.num_envs))

    def sample(self, batch: int) -> dict[str, Tensor]:
        """Draws windows: {key: [length, batch, ...]} and `index` int64 [length, batch], the ids of the rows.

        `is_first` is set at the start of each window, `is_last` where the next row is first (an abandoned
        episode). Raises RuntimeError while there is no window.
        """
        if not len(self):
            raise RuntimeError(f"no window of {self.length} rows in the replay yet ({self.added} rows added)")
        online = self._pop_online(batch)
        uniform = torch.randint(len(self), (batch - len(online),), generator=self._generator)
        uniform += self.oldest * self.num_envs
        if self.prioritize_ends:
            uniform = self._end_with_episode(uniform)
        starts = torch.cat([torch.tensor(online, dtype=torch.int64), uniform])
        index = starts + self.num_envs * torch.arange(self.length)[:, None]
        slots = self._slots(index).flatten()
        shape = (self.length, batch)
        flat = {key: data.flatten(0, 1).index_select(0, slots) for key, data in self._data.items()}
        out = {key: value.unflatten(0, shape) for key, value in flat.items()}
        out["is_last"][:-1] |= out["is_first"][1:]
        out["is_first"][0] = True
        return out | {"index": index}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Samples drawn inside change nothing of those drawn later."""
        queue, generator = self._queue.copy(), self._generator.get_state()
        try:
            yield
        finally:
            self._queue = queue
            self._generator.set_state(generator)

    def write_back(self, index: Tensor, values: Mapping[str, Tensor]) -> None:
        """Replaces the latents of rows `index` int64 [T, B] by `values` {key: [T, B, ...]}.

        `index` is `sample`'s or a slice of it. Rows overwritten since are dropped; of a row that is in
        several windows the last window's value stays.
        Raises ValueError for a key that is not a latent key, or a wrong shape.
        """
        for key, value in values.items():
            if key not in self._latent_keys or key not in self._data:
                raise ValueError(f"{key!r} is no stored latent; latent_keys are {sorted(self._latent_keys)}")
            expected = (*index.shape, *self._data[key].shape[2:])
            if value.shape != expected:
                raise ValueError(f"{key!r} has shape {tuple(value.shape)}, expected {expected}")
        # Ids window by window; an indexed copy with repeated targets would have no defined winner.
        ids, inverse = torch.unique(index.cpu().T.flatten(), return_inverse=True)
        last = torch.zeros_like(ids).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amax")
        held = (ids >= self.oldest * self.num_envs) & (ids < self.added * self.num_envs)
        slots, last = self._slots(ids[held]), last[held]
        for key, value in values.items():
            data = self._data[key].flatten(0, 1)
            data[slots] = value.detach().transpose(0, 1).flatten(0, 1).cpu()[last].to(data.dtype)

    def describe(self) -> str:
        """One line on rows, bytes a row and memory; "empty" before the first row."""
        if not self._data:
            return "replay: empty"
        fields = {key: data[0, 0] for key, data in self._data.items()}
        return cost(fields, self.rows * self.num_envs)

    def save(self, folder: Path, chunks: Path) -> dict[str, Any]:
        """Writes what a resume needs and returns the rest of the state (ints, lists, dicts, one tensor).

        Full chunks go to `chunks`, a folder that all checkpoints of a run share, once in their life; latents
        and the rows of the last, partial chunk go to `folder`, this checkpoint's own. A file is complete or
        absent.
        """
        first, full = self.oldest // self._chunk_rows, self.added // self._chunk_rows
        # What this run did not write itself is never reused: a folder may hold chunks of an abandoned future.
        self._saved = {k: crc for k, crc in self._saved.items() if k >= first}
        files: dict[str, int] = {}
        if self._data:
            for k in range(first, full):
                if k not in self._saved:
                    self._saved[k] = _write(chunks / _chunk_name(k), self._chunk(k))
            files["tail.safetensors"] = _write(folder / "tail.safetensors", self._chunk(full))
            files |= self._save_latents(folder)
        return {
            "num_envs": self.num_envs,
            "length": self.length,
            "rows": self.rows,
            "chunk_rows": self._chunk_rows,
            "added": self.added,
            "oldest": self.oldest,
            "queue": list(self._queue),
            "generator": self._generator.get_state(),
            "chunks": dict(self._saved),
            "files": files,
        }

    def load(
        self, folder: Path, chunks: Path, state: Mapping[str, Any], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        """Restores what `save(folder, chunks)` returned as `state`; all that follows is bitwise the same.

        The capacity may differ from the saved one (the newest rows stay), and so may the dtype of latents, which
        become those of `dtypes`. Raises FastwmError, naming the file or the option, if a file is missing or damaged,
        or `num_envs` or `length` differ.
        """
        check(state, SAVED, "the saved replay")
        if not all(map(is_plain, state["files"])):
            raise FastwmError("the saved replay names a file outside of its folder")
        try:
            self._load(folder, chunks, state, dtypes or {})
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise FastwmError(f"the saved replay in {folder} is damaged: {error}") from error

    def _load(self, folder: Path, chunks: Path, state: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> None:
        for name in ("num_envs", "length"):
            if state[name] != getattr(self, name):
                raise FastwmError(f"the saved replay has {name} {state[name]}, this run {getattr(self, name)}")
        whole = all(type(start) is int for start in state["queue"]) and 0 <= state["oldest"] <= state["added"] < 2**53
        if not whole or state["rows"] < 1 or state["chunk_rows"] < 1:
            raise ValueError("its numbers are impossible")
        self._data = {}
        self._chunk_rows, self.added, self._first = state["chunk_rows"], state["added"], state["oldest"]
        self._queue = deque(state["queue"])
        self._generator.set_state(state["generator"].cpu())
        self._saved = dict(state["chunks"])
        parts = {name: _read(folder / name, crc) for name, crc in state["files"].items()}
        for part in parts.values():
            part.update({key: part[key].to(dtype) for key, dtype in dtypes.items() if key in part})
        tail = parts.pop("tail.safetensors", None)
        if tail is None:
            return
        fields = {key: value for part in (tail, *parts.values()) for key, value in part.items()}
        self._allocate({key: value.new_empty(value.shape[1:]) for key, value in fields.items()})
        first, full = self._first // self._chunk_rows, self.added // self._chunk_rows
        if len(self._saved) != full - first or sorted(self._saved) != list(range(first, full)):
            raise ValueError("it lacks rows")
        self._restore(tail, full, self.added)
        for k, crc in self._saved.items():
            self._restore(_read(chunks / _chunk_name(k), crc), k, (k + 1) * self._chunk_rows)
        slot = 0
        for _, part in sorted(parts.items()):
            count = len(next(iter(part.values())))
            # The saved ring's slots, as absolute rows.
            rows = self._first + (torch.arange(slot, slot + count) - self._first) % state["rows"]
            self._scatter(part, rows)
            slot += count

    def prune(self, chunks: Path, oldest_needed_row: int) -> None:
        """Deletes the chunk files whose rows all lie before `oldest_needed_row`, and unfinished files.

        That row is the least `oldest` in the states of the checkpoints that are kept.
        """
        for path in chunks.glob(f"chunk-{'[0-9]' * 8}.safetensors"):
            number = int(path.stem.removeprefix("chunk-"))
            if (number + 1) * self._chunk_rows <= oldest_needed_row:
                path.unlink()
        remove_temporaries(chunks)

    def _allocate(self, fields: Mapping[str, Tensor]) -> None:
        for key in ("is_first", "is_last"):
            if key not in fields or fields[key].dtype != torch.bool:
                raise ValueError(f"a row needs {key!r} as bool; it has {sorted(fields)}")
        total, one = self.rows * self.num_envs, {key: value[0] for key, value in fields.items()}
        have = _available_memory()
        if have is not None and total * row_bytes(one) > have:
            raise FastwmError(f"{cost(one, total)}: lower the replay's capacity (or the image size)")
        self._data = {key: torch.empty((self.rows, *value.shape), dtype=value.dtype) for key, value in fields.items()}

    def _check(self, row: Mapping[str, Tensor]) -> None:
        if row.keys() != self._data.keys():
            raise ValueError(f"a row has keys {sorted(row)}, the first one had {sorted(self._data)}")
        for key, value in row.items():
            data = self._data[key]
            if value.shape != data.shape[1:] or value.dtype != data.dtype:
                raise ValueError(
                    f"{key!r} is {value.dtype} {tuple(value.shape)}, "
                    f"in the first row it was {data.dtype} {tuple(data.shape[1:])}"
                )

    def _pop_online(self, batch: int) -> list[int]:
        starts: list[int] = []
        while self._queue and len(starts) < batch:
            start = self._queue.popleft()
            if start >= self.oldest * self.num_envs:
                starts.append(start)
        return starts

    def _end_with_episode(self, starts: Tensor) -> Tensor:
        """Windows moved back so that the first end of an episode in them is their last row."""
        offset = torch.arange(self.length)[:, None]
        last = self._data["is_last"].flatten(0, 1)[self._slots(starts + self.num_envs * offset)]
        surplus = torch.where(last.any(0), self.length - 1 - last.int().argmax(0), 0)
        room = starts // self.num_envs - self.oldest
        return starts - self.num_envs * torch.minimum(surplus, room)

    def _slots(self, ids: Tensor) -> Tensor:
        return ids // self.num_envs % self.rows * self.num_envs + ids % self.num_envs

    def _is_latent(self, key: str) -> bool:
        return key in self._latent_keys

    def _save_latents(self, folder: Path) -> dict[str, int]:
        latents = {key: data for key, data in self._data.items() if self._is_latent(key)}
        files = {}
        for slot in range(0, min(self.added, self.rows) if latents else 0, self._chunk_rows):
            stop = min(slot + self._chunk_rows, self.added)
            name = f"latent-{slot:012d}.safetensors"
            files[name] = _write(folder / name, {key: data[slot:stop] for key, data in latents.items()})
        return files

    def _chunk(self, number: int) -> dict[str, Tensor]:
        """The rows of a chunk that are held, without latents: {key: [up to chunk_rows, num_envs, ...]}."""
        start = max(self.oldest, number * self._chunk_rows)
        slots = torch.arange(start, min(self.added, (number + 1) * self._chunk_rows)) % self.rows
        return {key: data[slots] for key, data in self._data.items() if not self._is_latent(key)}

    def _restore(self, part: Mapping[str, Tensor], number: int, stop: int) -> None:
        """Put the rows of a chunk, which end before row `stop`, into the ring."""
        count = len(next(iter(part.values())))
        if stop - count > max(self._first, number * self._chunk_rows):
            raise ValueError(f"chunk {number} lacks rows")
        self._scatter(part, torch.arange(stop - count, stop))

    def _scatter(self, part: Mapping[str, Tensor], rows: Tensor) -> None:
        held = (rows >= self.oldest) & (rows < self.added)
        for key, value in part.items():
            self._data[key][rows[held] % self.rows] = value[held]


def row_bytes(fields: Mapping[str, Field]) -> int:
    """Bytes of one row of one environment, from its spaces, arrays or tensors."""
    return sum(int(np.prod(field.shape)) * field.dtype.itemsize for field in fields.values())


def cost(fields: Mapping[str, Field], capacity: int) -> str:
    """The memory of a replay, in words: "replay: 1,000,000 rows x 12.0 KB = 11.5 GB (have 20.3 GB)"."""
    size = row_bytes(fields)
    have = _available_memory()
    text = f"replay: {capacity:,} rows x {size / 2**10:.1f} KB = {capacity * size / 2**30:.1f} GB"
    return text if have is None else f"{text} (have {have / 2**30:.1f} GB)"


def _available_memory() -> int | None:
    """Bytes that can still be taken, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return available if text == "max" else min(available, int(text))


def _chunk_name(number: int) -> str:
    return f"chunk-{number:08d}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor]) -> int:
    """Writes a file so that it is complete or absent even after a power cut; returns its checksum."""
    data = safetensors.torch.save(tensors)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return zlib.crc32(data)


def _read(path: Path, checksum: int) -> dict[str, Tensor]:
    try:
        have = _available_memory()
        if have is not None and (size := regular(path).stat().st_size) > have:
            raise FastwmError(f"it has {size:,} bytes, more than there is memory")
        data = regular(path).read_bytes()
    except (OSError, FastwmError) as error:
        raise FastwmError(f"the saved replay lacks {path}: {error}") from error
    if zlib.crc32(data) != checksum:
        raise FastwmError(f"{path} is damaged, or was written by another run: its checksum is wrong")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FastwmError(f"{path} is damaged: {error}") from error
