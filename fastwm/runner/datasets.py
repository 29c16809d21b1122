"""Datasets as folders of stored rows, and stored rows as datasets: `fastwm import` and `fastwm export-replay`."""

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from fastwm import chunks
from fastwm.envs.observations import ObsAdapter
from fastwm.envs.spaces import ActAdapter
from fastwm.errors import FastwmError
from fastwm.files import regular
from fastwm.row import OWN_KEYS
from fastwm.runner import checkpoint
from fastwm.runner.offline import Stored

Arrays = dict[str, np.ndarray]

CHUNK = 1024
LARGEST = 1 << 34  # bytes of one episode's arrays
NOT_SEEN = ("action", "discount", "logprob", "reset")
"""Keys of episode files that are neither observations nor a row's own."""


def import_rows(source: str, folder: Path, keys: Mapping[str, str] | None = None) -> int:
    """Write a dataset, `npz:FOLDER` or `minari:ID`, as stored rows into the new `folder`; returns their number.

    Raises:
        FastwmError: the source is unknown, missing or damaged, or `folder` is not empty.
    """
    kind, _, name = source.partition(":")
    if kind not in ("npz", "minari") or not name:
        raise FastwmError(f"cannot import {source!r}: give npz:FOLDER or minari:ID")
    if folder.exists() and any(folder.iterdir()):
        raise FastwmError(f"{folder} is not empty: give a new folder")
    obs_space, act_space, episodes = read_npz(Path(name)) if kind == "npz" else read_minari(name, keys or {})
    chunks.write_spaces(folder, checkpoint.space_to_json(obs_space), checkpoint.space_to_json(act_space))
    writer, count = chunks.ChunkWriter(folder, CHUNK), 0
    for episode in episodes:
        for i in range(len(episode["reward"])):
            writer.add({key: value[i : i + 1] for key, value in episode.items()})
            count += 1
    writer.flush()
    return count


# Episode files of the Dreamers


def read_npz(folder: Path) -> tuple[dict[str, spaces.Space], spaces.Space, Iterator[Arrays]]:
    """Episode files as danijar/dreamer, dreamerv2 and NM512/dreamerv3-torch write them: a file an episode, of arrays
    [T, ...] whose `action` led to its row."""
    paths = sorted(folder.expanduser().glob("*.npz"))
    if not paths:
        raise FastwmError(f"{folder} holds no .npz files")
    first = load_npz(paths[0])
    obs = [key for key in first if key not in (*OWN_KEYS, *NOT_SEEN) and not key.startswith("log_")]
    if not obs:
        raise FastwmError(f"{paths[0]} holds no observation beside {', '.join(first)}")
    if "action" not in first or "reward" not in first:
        raise FastwmError(f"{paths[0]} is no episode: it needs 'action' and 'reward', and has {', '.join(first)}")
    obs_space = {key: observation_space(first[key]) for key in obs}
    onehot = all(is_onehot(load_npz(path)["action"]) for path in paths)
    width = first["action"].shape[1:]
    act_space: spaces.Space = spaces.Discrete(width[0]) if onehot else spaces.Box(-1, 1, width, np.float32)
    return obs_space, act_space, (episode_of(path, obs_space, onehot, width) for path in paths)


def load_npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            if sum(info.file_size for info in archive.infolist()) > LARGEST:
                raise FastwmError(f"{path} unpacks to more than {LARGEST >> 30} GB")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise FastwmError(f"{path} is no episode file: {error}") from error


def observation_space(x: np.ndarray) -> spaces.Space:
    if x.dtype == np.uint8 and x.ndim == 4:
        return spaces.Box(0, 255, x.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, x.shape[1:], np.float32)


def is_onehot(action: np.ndarray) -> bool:
    """Whether every action but the first, which is none, is one of classes."""
    rows = action[1:]
    return rows.ndim == 2 and rows.shape[1] > 1 and bool((np.isin(rows, (0, 1)).all(1) & (rows.sum(1) == 1)).all())


def episode_of(path: Path, obs_space: Mapping[str, spaces.Space], onehot: bool, width: tuple[int, ...]) -> Arrays:
    """One file as rows [T, ...], each with the action that was chosen at it; the last has none."""
    data = load_npz(path)
    missing = [key for key in (*obs_space, "action", "reward") if key not in data]
    steps = len(data["reward"]) if not missing else 0
    if missing or data["action"].shape != (steps, *width) or steps < 2:
        raise FastwmError(f"{path} is no episode like the first file: {', '.join(missing) or 'its shapes differ'}")
    rows: Arrays = {}
    for key, space in obs_space.items():
        rows[key] = data[key].astype(space.dtype)
        if rows[key].shape != (steps, *(space.shape or ())):
            raise FastwmError(f"{path}: {key} is {list(data[key].shape)}, the first file's rows are {space.shape}")
    chosen = np.concatenate([data["action"][1:], np.zeros_like(data["action"][:1])])
    if not onehot and np.abs(chosen).max() > 1:
        raise FastwmError(f"{path}: actions reach {np.abs(chosen).max():.3g}, but must be scaled to [-1, 1]")
    rows["action"] = chosen.argmax(1) if onehot else chosen.astype(np.float32)
    last = np.arange(steps) == steps - 1
    if "is_terminal" in data:
        terminal = data["is_terminal"].astype(bool)
    elif "discount" in data:
        terminal = data["discount"] == 0
    else:
        raise FastwmError(f"{path} does not say how it ends: it needs 'is_terminal' or 'discount'")
    return rows | flags(data["reward"], last & terminal, last)


def flags(reward: np.ndarray, terminal: np.ndarray, last: np.ndarray) -> Arrays:
    """A row's own keys, of one episode."""
    first = np.arange(len(reward)) == 0
    return {"reward": np.where(first, 0, reward).astype(np.float32), "is_first": first, "is_last": last,
            "is_terminal": terminal}  # fmt: skip


# Minari


def minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise FastwmError("Minari datasets need the extra: pip install 'fastwm[data]'") from error
    return minari


def read_minari(name: str, keys: Mapping[str, str]) -> tuple[dict[str, spaces.Space], Any, Iterator[Arrays]]:
    """A dataset on this machine; `minari download` fetches one."""
    try:
        dataset = minari().load_dataset(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FastwmError(f"cannot read the Minari dataset {name!r}: {error}; `minari list local` names those here, "
                          f"`minari download {name}` fetches it") from error  # fmt: skip
    obs = ObsAdapter(dataset.observation_space, None, keys)
    act = ActAdapter(dataset.action_space, 1)

    def episodes() -> Iterator[Arrays]:
        for episode in dataset.iterate_episodes():
            steps = len(episode.rewards)
            last = np.arange(steps + 1) == steps
            ends = np.concatenate([[False], np.asarray(episode.terminations, bool)])
            reward = np.concatenate([[0], np.asarray(episode.rewards)])
            chosen = ActAdapter(dataset.action_space, steps).canonical(episode.actions)
            actions = {key: np.concatenate([x, np.zeros_like(x[:1])]) for key, x in chosen.items()}
            yield obs(episode.observations, steps + 1) | actions | flags(reward, ends & last, last)

    return obs.spaces, act.space, episodes()


def export_replay(folder: Path, name: str, trust: bool = False) -> tuple[int, int]:
    """Write stored rows as a new Minari dataset; returns the episodes in it, and those left out as they have no end.

    Actions are those of the run: real ones in [-1, 1], discrete ones from 0.
    """
    library, stored = minari(), Stored(folder, trust)
    obs_space, act_space = stored.spaces
    from minari.data_collector import EpisodeBuffer

    streams: list[list[Arrays]] = []
    buffers: list[Any] = []
    cut = 0
    for row in stored.rows():
        arrays = {key: value.numpy() for key, value in row.items()}
        streams = streams or [[] for _ in arrays["reward"]]
        for i, rows in enumerate(streams):
            one = {key: value[i] for key, value in arrays.items()}
            if one["is_first"]:
                cut += bool(rows)
                rows.clear()
            rows.append(one)
            if one["is_last"]:
                if rows[0]["is_first"] and len(rows) > 1:
                    buffers.append(buffer_of(EpisodeBuffer, len(buffers), rows, obs_space, act_space))
                rows.clear()
    cut += sum(bool(rows) for rows in streams)
    if not buffers:
        raise FastwmError(f"{folder} holds no whole episode")
    try:
        with warnings.catch_warnings(action="ignore"):  # of fields for the dataset's author to fill in
            library.create_dataset_from_buffers(
                name, buffers, observation_space=spaces.Dict(obs_space),
                action_space=spaces.Dict(act_space) if isinstance(act_space, dict) else act_space,
            )  # fmt: skip
    except (ValueError, OSError) as error:
        raise FastwmError(f"cannot write the Minari dataset {name!r}: {error}") from error
    return len(buffers), cut


def buffer_of(kind: Any, number: int, rows: list[Arrays], obs_space: Mapping[str, Any], act_space: Any) -> Any:
    def column(key: str, of: list[Arrays]) -> np.ndarray:
        return np.stack([row[key] for row in of])

    keys = act_space if isinstance(act_space, dict) else ("action",)
    actions = {key: column(key, rows[:-1]) for key in keys}
    return kind(
        id=number,
        observations={key: column(key, rows) for key in obs_space},
        actions=actions if isinstance(act_space, dict) else actions["action"],
        rewards=column("reward", rows[1:]).tolist(),
        terminations=column("is_terminal", rows[1:]).tolist(),
        truncations=(column("is_last", rows[1:]) & ~column("is_terminal", rows[1:])).tolist(),
    )
