"""Shards: parts of a run that any number of processes can share out without changing what is computed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastwm.agents import Agent
from fastwm.distributed import Alone
from fastwm.envs import Record, VecEnv, describe, env_seeds, make_env
from fastwm.errors import FastwmError
from fastwm.files import Kinds, check
from fastwm.replay import SAVED, Replay
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, env_options, env_source, replay_rows
from fastwm.runner.episodes import Episodes
from fastwm.runner.state import pack
from fastwm.writing import disk_errors

STATE: dict[str, Kinds] = {"rng": list, "drawn": int, "at": list}


class Shard:
    """Environments, their replay, and the generator of their actions: one part of `config.shards` equal ones.

    Everything here follows from the run's seed and the shard's number, whichever process hosts it. The only shard of a
    run draws from torch's generator.
    """

    at: list[int] = [0, 0]  # noqa: RUF012
    """The chunk of an actor's rows that is being read, and how many of its rows were taken."""
    updates = 0

    def __init__(self, number: int, config: TrainConfig[Any], env: VecEnv, agent: Agent):
        self.number, self.config, self.env, self.agent = number, config, env, agent
        self.replay = make_replay(number, config, agent)
        self.episodes = Episodes(env.num_envs)
        self.record: Record | None = None
        self.action: Any = None
        self.state: Any = None
        self.row: dict[str, Tensor] = {}
        self.rng: list[Tensor] | None = None
        if config.shards > 1:
            torch.manual_seed(shard_seed(config.seed, number, 0))
            self.rng = rng_state(agent.device)

    def read(self) -> None:
        """Fill an empty replay with what there is to learn from before the first step: nothing."""

    def choose(self, mode: str) -> None:
        """Take the actions chosen before, or begin; then choose those at the row that this has brought."""
        self.record = self.env.reset() if self.record is None else self.env.step(self.action)
        with self.drawing():
            self.action, self.state = self.agent.act(self.record, self.state, mode)
        actions = self.action if isinstance(self.action, dict) else {"action": self.action}
        row = {key: value.cpu() for key, value in (actions | self.agent.latents(self.state)).items()}
        self.row = self.replay.accept(self.record | row)
        self.episodes.add(self.record)

    def remember(self) -> None:
        """Put the row into replay."""
        self.replay.append(self.row)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Torch's generator is the shard's own inside."""
        if self.rng is not None:
            set_rng_state(self.rng, self.agent.device)
        yield
        if self.rng is not None:
            self.rng = rng_state(self.agent.device)

    @property
    def described(self) -> str:
        """Where the rows come from, in words."""
        shards = f", in each of {self.config.shards} shards" if self.config.shards > 1 else ""
        return f"environment: {self.config.env}: {describe(self.env)}{shards}"

    def close(self) -> None:
        """Free the environments."""
        self.env.close()

    def prune(self, logdir: Path) -> None:
        """Remove the chunks that no kept checkpoint needs."""
        self.replay.prune(self.folders(logdir, logdir)[1], checkpoint.oldest_row(logdir))

    def metrics(self) -> dict[str, float]:
        """Scalars of where the rows come from."""
        return {}

    def tell(self) -> None:
        """Say how far the rows were read."""

    def report(self) -> list[float]:
        """Rows of this iteration, decisions among them; then three numbers an environment: whether its episode has
        ended, the return and the length."""
        assert self.record is not None
        last = self.record["is_last"]
        ended = np.stack([last, self.episodes.total, self.episodes.length], 1).ravel()
        return [float(len(last)), float((~last).sum()), *ended.tolist()]

    # Checkpoints

    def folders(self, saved: Path, logdir: Path) -> tuple[Path, Path]:
        return folders(self.number, self.config, saved, logdir)

    def save(self, saved: Path, logdir: Path, drawn: int) -> None:
        """Write replay and generators into the checkpoint `saved`; `drawn` is the offset of the updates' stream."""
        folder, chunks = self.folders(saved, logdir)
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            more = self.replay.save(folder, chunks)
            tree, tensors = pack({"extra": {}, "more": more, "rng": self.rng or [], "drawn": drawn, "at": self.at})
            (folder / checkpoint.STATE).write_text(json.dumps(tree))
            save_file(tensors, folder / checkpoint.STATE_TENSORS)

    def load(self, saved: Path, logdir: Path) -> int:
        """Restore what `save` wrote; returns `drawn`."""
        folder, _ = self.folders(saved, logdir)
        state = checkpoint.read_state(folder)
        check(state, STATE, str(folder))
        if self.rng is not None:
            self.rng = state["rng"]
            set_rng_state(self.rng, self.agent.device)  # refuses what is damaged
        self.at = state["at"]
        self.load_replay(saved, logdir, state["more"])
        return int(state["drawn"])

    def load_replay(self, saved: Path, logdir: Path, more: Mapping[str, Any]) -> None:
        if self.config.fresh_replay:
            return
        latents = self.agent.latents(self.agent.initial(1))
        try:
            check(more, SAVED, "the saved replay")
            self.check_windows(more, logdir)
            dtypes = {key: value.dtype for key, value in latents.items()}
            self.replay.load(*self.folders(saved, logdir), more, dtypes)
        except FastwmError as error:
            raise FastwmError(f"{error}; add --fresh-replay to continue with an empty replay") from error

    def check_windows(self, more: Mapping[str, Any], logdir: Path) -> None:
        """A replay goes on with as many environments, and as long windows, as it was begun with."""
        c = self.config
        for name, was, now in (
            ("num_envs", more["num_envs"] * c.shards, self.replay.num_envs * c.shards),
            ("batch_length", more["length"] - 1, c.batch_length),
        ):
            if was != now:
                raise FastwmError(
                    f"the run in {logdir} was begun with {name} {was} and its replay fits no other: "
                    f"leave out --{name.replace('_', '-')} {now}, give another --logdir"
                )


def check_shards(config: TrainConfig[Any], world: int) -> None:
    """Refuse parts that are not equal."""
    if config.actors and (config.actors != config.shards or config.offline or world > 1):
        raise FastwmError("--actors N makes N shards of a learner that is one process: leave out "
                          "--shards, --offline and torchrun")  # fmt: skip
    for name, whole in (("num_envs", config.num_envs), ("batch_size", config.batch_size)):
        if whole % config.shards:
            raise FastwmError(
                f"--shards {config.shards} does not divide {name} {whole}: every shard gets as many; "
                f"change --shards or --{name.replace('_', '-')}"
            )
    if config.offline and (config.shards > 1 or world > 1):
        raise FastwmError("--offline learns in one process: leave out --shards and torchrun")
    if config.shards % world:
        raise FastwmError(
            f"{world} processes cannot share --shards {config.shards} evenly: give --shards {world}, or a multiple"
        )


def own_shards(config: TrainConfig[Any], group: Alone) -> range:
    """The numbers of the shards that this process hosts."""
    each = config.shards // group.world
    return range(group.rank * each, (group.rank + 1) * each)


def make_shard_env(number: int, config: TrainConfig[Any], env: Any, seed: int) -> VecEnv:
    """The shard's environments: those of its numbers among all environments of the run."""
    each = config.num_envs // config.shards
    seeds = seed if config.shards == 1 else env_seeds(seed, config.num_envs)[number * each : (number + 1) * each]
    return make_env(env_source(config, env), each, seeds, **env_options(config))


def env_seed(seed: int, starts: int) -> int:
    """The environments' seed: the run's own at its first start and a new one at every other, so that a run that goes
    on meets new episodes, not once more those it has seen."""
    return seed if starts == 1 else int(np.random.SeedSequence(seed, spawn_key=(starts,)).generate_state(1)[0] >> 1)


def make_replay(number: int, config: TrainConfig[Any], agent: Agent) -> Replay:
    seed = config.seed if config.shards == 1 else shard_seed(config.seed, number, 1)
    return Replay(
        replay_rows(config) // config.shards, config.num_envs // config.shards, config.batch_length + 1, seed=seed,
        latent_keys=agent.latent_keys, online=agent.online, prioritize_ends=agent.prioritize_ends,
    )  # fmt: skip


def folders(number: int, config: TrainConfig[Any], saved: Path, logdir: Path) -> tuple[Path, Path]:
    """Where a shard's part of one checkpoint is, and the chunks that all checkpoints share."""
    if config.shards == 1:
        return saved, logdir / "replay"
    return saved / f"shard-{number}", logdir / "replay" / f"shard-{number}"


def saved_replay(saved: Path, logdir: Path, config: TrainConfig[Any], agent: Agent) -> Replay | None:
    """The replay in a checkpoint, that of the first shard, or None where it holds none."""
    folder, chunks = folders(0, config, saved, logdir)
    more = checkpoint.read_state(folder)["more"]
    if not more:
        return None
    replay = make_replay(0, config, agent)
    if config.offline:  # which has as many streams as were stored
        check(more, SAVED, "the saved replay")
        streams = max(more["num_envs"], 1)
        capacity = max(more["rows"], config.batch_length + 1) * streams
        replay = Replay(capacity, streams, config.batch_length + 1, latent_keys=agent.latent_keys)
    replay.load(folder, chunks, more)
    return replay


def stream_keys(config: TrainConfig[Any], shards: range) -> list[int]:
    """Keys of the noise that the shards' updates draw."""
    return [shard_seed(config.seed, number, 2) for number in shards]


def shard_seed(seed: int, number: int, purpose: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(number, purpose)).generate_state(1, np.uint64)[0] >> 1)


def rng_state(device: torch.device) -> list[Tensor]:
    """Torch's generators of the CPU and of this device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_rng_state(states: list[Tensor], device: torch.device) -> None:
    try:
        torch.set_rng_state(states[0].cpu())
        if device.type == "cuda" and len(states) > 1:
            torch.cuda.set_rng_state(states[1].cpu(), device)
    except (TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise FastwmError(f"the saved state of a shard's generator is damaged: {error}") from error
