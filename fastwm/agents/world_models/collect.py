"""Stage 1: episodes of a random policy, or of the controller, streamed to disk in chunks."""

import logging
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.world_models.arrays import names_in, open_npy, read_npz
from fastwm.agents.world_models.stage import Stage, Stopped
from fastwm.agents.world_models.task import Policy, Record, random_policy
from fastwm.envs import VecEnv, make_env
from fastwm.errors import FastwmError
from fastwm.files import seal, unseal
from fastwm.nn.conv_vae import SIDE
from fastwm.writing import remove_temporaries, replacing, write_text

log = logging.getLogger("fastwm")

MAX_CHUNKS = 1_000_000
FRAME_BYTES = SIDE * SIDE * 3


@dataclass
class Chunk:
    """Whole episodes, end to end. A row is a frame that was acted on; the frame after the last action is not kept.

    `reward` is the one the action brought; `done` says that it ended the episode (a time limit does not).
    """

    image: np.ndarray  # uint8 [N, 64, 64, 3]
    action: np.ndarray  # float32 [N, A], as M sees it
    reward: np.ndarray  # float32 [N]
    is_first: np.ndarray  # bool [N]
    done: np.ndarray  # bool [N]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        return {key: value for key, value in vars(self).items() if key != "image"}


class Collect(Stage):
    """Chunks `chunk-00000`, `chunk-00001`, ...: a folder each, which gets its name when all of it is on disk."""

    name = "collect"

    @property
    def episodes(self) -> list[int]:
        """Episodes of every chunk."""
        c = self.config.collect
        whole, rest = divmod(c.episodes, c.chunk_episodes)
        return [c.chunk_episodes] * whole + [rest] * bool(rest)

    def missing(self) -> list[int]:
        """Chunks to be gathered: all that are not there, or with enough frames those that later ones left behind."""
        there = [chunk_path(self.run.folder, i).is_dir() for i in range(len(self.episodes))]
        end = len(there)
        if self.config.collect.max_frames and self.enough(self.frames):
            end = max((i for i, is_there in enumerate(there) if is_there), default=-1)
        return [i for i, is_there in enumerate(there[:end]) if not is_there]

    @property
    def frames(self) -> int:
        """On disk."""
        return len(Frames(chunk_paths([self.run.folder])))

    def enough(self, frames: int) -> bool:
        return 0 < self.config.collect.max_frames <= frames

    def restore(self) -> bool:
        """Finished where no chunk is missing; or all are: then they were removed to save space."""
        done, c = read_done(self.run.folder), self.config.collect
        if done is None or (done["episodes"] < c.episodes and not self.enough(done["frames"])):
            return False
        return sum(chunk_path(self.run.folder, i).is_dir() for i in range(done["chunks"])) in (0, done["chunks"])

    def work(self) -> None:
        c, missing = self.config.collect, self.missing()
        remove_temporaries(self.run.folder)
        if missing:
            todo = sum(self.episodes[i] for i in missing)
            self.check_space(todo)
            env = make_env(self.run.env, c.num_envs, int(self.rng(missing[0]).integers(2**31)), **self.run.env_args)
            try:
                self.gather(env, missing, todo)
            finally:
                env.close()
        counts = [n for i, n in enumerate(self.episodes) if chunk_path(self.run.folder, i).is_dir()]
        summary = {"episodes": sum(counts), "chunks": len(counts), "frames": self.frames}
        write_text(self.run.folder / "done.json", seal(summary))
        self.run.say(f"collected {summary['frames']:,} frames of {summary['episodes']:,} episodes")

    def check_space(self, episodes: int) -> None:
        """The cost, before it is spent."""
        frames, left = episodes * self.task.mean_frames, self.config.collect.max_frames - self.frames
        frames = min(frames, left) if left > 0 else frames
        size = frames * FRAME_BYTES
        free = shutil.disk_usage(self.run.folder).free
        self.run.say(
            f"collecting {episodes:,} episodes, about {self.task.mean_frames} frames each, {frames:,} frames in all, "
            f"{size / 1e9:.1f} GB on disk ({free / 1e9:.0f} GB free)"
        )
        if size > free:
            raise FastwmError(
                f"{self.run.folder}: {size / 1e9:.1f} GB of frames do not fit in {free / 1e9:.1f} GB; "
                "give fewer --agent.collect.episodes or another --logdir"
            )

    def gather(self, env: VecEnv, missing: list[int], todo: int) -> None:
        c = self.config.collect
        source = self.stream(env)
        frames = seen = dropped = 0
        start, wanted = time.monotonic(), c.max_frames - self.frames if c.max_frames else np.inf
        counts = self.episodes
        for index in missing:
            if index not in self.missing():
                return  # enough frames
            episodes: list[Chunk] = []
            while len(episodes) < counts[index]:
                steps, episode = next(source)
                frames += steps
                if episode is not None:
                    if len(episode.reward) >= max(c.min_frames, 1):
                        episodes.append(episode)
                        seen += 1
                    else:
                        dropped += 1
                rate = frames / max(time.monotonic() - start, 1e-9)
                coming = (todo - seen) * frames / max(seen + dropped, 1)
                left = max(min(coming, wanted - frames), 0) / max(rate, 1e-9)
                self.run.show(
                    f"collect: episode {seen:,}/{todo:,} ({dropped} too short)  {frames:,} frames  {rate:,.0f} a second"
                    f"  about {left:.0f} s left"
                )
                if self.run.stopping():
                    raise Stopped
            chunk = Chunk(*(np.concatenate([getattr(e, key) for e in episodes]) for key in vars(episodes[0])))
            write_chunk(self.run.folder, index, chunk)
            values = {"episodes": seen, "frames": frames, "dropped": dropped, "frames_per_second": rate,
                      "mean_length": len(chunk.reward) / len(episodes),
                      "mean_return": float(chunk.reward.sum()) / len(episodes)}  # fmt: skip
            self.run.log(index, values)

    def policy(self, env: VecEnv) -> Policy:
        if self.iteration == 0:
            return random_policy(self.config.collect.policy, self.task, env.num_envs, self.rng(1))
        return ControllerPolicy(self)

    def stream(self, env: VecEnv) -> Iterator[tuple[int, Chunk | None]]:
        """Steps taken, and an episode where one ended."""
        policy = self.policy(env)
        running: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(env.num_envs)]
        try:
            record = env.reset()
            while True:
                image, action = self.task.frames(record["image"]).numpy(), policy(record)
                acted, rows = ~record["is_last"], (image, action.numpy(), record["is_first"])
                record = env.step(self.task.env_action(action))
                yield int(acted.sum()), None
                for i in np.flatnonzero(acted):
                    running[i].append((*(row[i].copy() for row in rows), record["reward"][i], record["is_terminal"][i]))
                    if record["is_last"][i]:
                        images, actions, firsts, rewards, dones = map(np.stack, zip(*running[i]))
                        running[i] = []
                        yield 0, Chunk(images, actions, rewards, firsts, dones)
        except RuntimeError as error:
            raise FastwmError(f"an environment of {self.run.env} died: {error}; the same command goes on") from error


class ControllerPolicy:
    """The agent so far, for later iterations."""

    def __init__(self, stage: Stage):
        self.agent = stage.agent
        self.state: dict[str, Tensor] | None = None

    def __call__(self, record: Record) -> Tensor:
        action, self.state = self.agent.choose(record, self.state)
        return action.cpu()


def chunk_path(folder: Path, index: int) -> Path:
    return folder / f"chunk-{index:05d}"


def write_chunk(folder: Path, index: int, chunk: Chunk) -> None:
    """All of a chunk, or nothing."""
    with replacing(chunk_path(folder, index)) as temporary:
        temporary.mkdir()
        np.save(temporary / "image.npy", chunk.image)
        np.savez(temporary / "rows.npz", **chunk.rows, image_crc=np.int64(zlib.crc32(chunk.image)))  # type: ignore[arg-type]


def read_done(folder: Path) -> dict[str, int] | None:
    """Read the record of a finished collection; None where it is not finished or the record cannot be read."""
    path = folder / "done.json"
    if not path.exists():
        return None
    try:
        summary: dict[str, int] = unseal(path, dict.fromkeys(("episodes", "chunks", "frames"), int))
    except FastwmError as error:
        log.warning("%s; looking at the chunks themselves", error)
        return None
    return summary if 0 <= summary["chunks"] <= MAX_CHUNKS else None


def chunk_paths(folders: list[Path]) -> list[Path]:
    """All finished chunks, in order."""
    return [path for folder in folders for path in sorted(folder.glob("chunk-[0-9]*"))]


def open_chunks(folders: list[Path]) -> list[Path]:
    """The chunks of finished collections; one that is gone is a FastwmError."""
    for folder in folders:
        done = read_done(folder)
        if done is None:
            raise FastwmError(f"{folder}: no frames yet; run the stages from the start, or --stage collect first")
        for index in range(done["chunks"]):
            path = chunk_path(folder, index)
            if not (path / "image.npy").is_file() or not (path / "rows.npz").is_file():
                raise FastwmError(
                    f"{path} is missing or broken: remove what is left of it; the same command gathers it again"
                )
    return chunk_paths(folders)


def open_frames(chunk: Path) -> np.ndarray:
    """uint8 [N, 64, 64, 3], on disk."""
    return open_npy(chunk / "image.npy", "uint8", (-1, SIDE, SIDE, 3))


def read_rows(chunk: Path, actions: int, frames: int) -> tuple[dict[str, np.ndarray], int | None]:
    """All of a chunk but its frames, and their checksum, which earlier versions did not write."""
    path = chunk / "rows.npz"
    spec: dict[str, tuple[str, tuple[int, ...]]] = {
        "action": ("float32", (frames, actions)), "reward": ("float32", (frames,)), "is_first": ("bool", (frames,)),
        "done": ("bool", (frames,)),
    }  # fmt: skip
    if "image_crc" in names_in(path):
        spec["image_crc"] = ("int64", ())
    rows = read_npz(path, spec)
    crc = rows.pop("image_crc", None)
    return rows, None if crc is None else int(crc)


class Frames:
    """The frames of many chunks as one, read from disk where they are asked for."""

    def __init__(self, paths: list[Path]):
        self.arrays = [open_frames(path) for path in paths]
        self.starts = np.cumsum([0] + [len(a) for a in self.arrays])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """uint8 [B, 64, 64, 3]."""
        out = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
        chunk = np.searchsorted(self.starts, rows, "right") - 1
        for i in np.unique(chunk):
            at = chunk == i
            out[at] = self.arrays[i][rows[at] - self.starts[i]]
        return torch.from_numpy(out)
