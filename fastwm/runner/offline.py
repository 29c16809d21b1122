"""Stored rows as a run's only experience: of another run, or imported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gymnasium import spaces
from torch import Tensor

from fastwm import chunks
from fastwm.agents import Agent
from fastwm.errors import FastwmError
from fastwm.files import check_folder
from fastwm.replay import Replay
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig
from fastwm.runner.episodes import Episodes
from fastwm.runner.shard import Shard

Spaces = tuple[dict[str, spaces.Space], Any]


class Stored:
    """The rows in a folder: `chunks` are their files in order, each of the streams side by side."""

    def __init__(self, folder: Path, trust: bool = False):
        if not folder.is_dir():
            raise FastwmError(f"there is no folder {folder} to learn from")
        check_folder(folder, trust)
        self.folder = folder
        if (folder / "config.yaml").is_file():
            newest = checkpoint.newest(folder, Path)
            if newest is None:
                raise FastwmError(f"the run in {folder} has saved nothing yet")
            meta = checkpoint.describe(newest)
            given = meta["obs_space"], meta["act_space"]
            if meta.get("shards", 1) > 1:
                raise FastwmError(f"the run in {folder} has several shards: `fastwm export-replay` joins them first")
            self.chunks = [chunks.chunk_path(folder / "replay", n) for n in chunks.chunk_numbers(folder / "replay")]
            self.chunks.append(newest / "tail.safetensors")
        else:
            given = chunks.read_spaces(folder)
            self.chunks = [chunks.chunk_path(folder, number) for number in chunks.chunk_numbers(folder)]
        self.spaces: Spaces = (checkpoint.space_from_json(given[0]), checkpoint.space_from_json(given[1]))

    def rows(self) -> Iterator[dict[str, Tensor]]:
        """Every row [streams, ...] in order."""
        for path in self.chunks:
            yield from chunks.rows_of(chunks.read_chunk(path)[0])


class OfflineShard(Shard):
    """The replay of stored rows, which no environment adds to. A run counts steps as if `num_envs` did."""

    def __init__(self, stored: Stored, config: TrainConfig[Any], agent: Agent):
        self.number, self.config, self.agent = 0, config, agent
        self.rng = None
        self.stored, self.episodes = stored, Episodes(config.num_envs)
        count = streams = 0
        for path in stored.chunks:
            rows, streams = chunks.read_chunk(path)[0]["reward"].shape
            count += rows
        if count <= config.batch_length:
            raise FastwmError(f"{stored.folder} holds {count} rows, a window has {config.batch_length + 1}: "
                              "lower --batch-length")  # fmt: skip
        self.replay = Replay(
            count * streams, streams, config.batch_length + 1, online=agent.online, seed=config.seed,
            latent_keys=agent.latent_keys, prioritize_ends=agent.prioritize_ends,
        )  # fmt: skip

    def read(self) -> None:
        """Fill the replay; latents begin as zeros, and each update writes better ones back."""
        latents = self.agent.latents(self.agent.initial(self.replay.num_envs))
        for row in self.stored.rows():
            self.replay.add(row | {key: value.cpu() for key, value in latents.items()})

    @property
    def described(self) -> str:
        return f"{self.replay.added * self.replay.num_envs:,} stored rows of {self.stored.folder}"

    def choose(self, mode: str) -> None:
        pass

    def remember(self) -> None:
        pass

    def report(self) -> list[float]:
        return [self.config.num_envs, 0.0, *[0.0] * (3 * self.config.num_envs)]

    def close(self) -> None:
        pass
