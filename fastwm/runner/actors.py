"""Actors apart from the learner: processes, robots or other hosts that share a folder with it.

`LOGDIR/actors/weights.safetensors` holds the learner's newest weights, and `LOGDIR/actors/K` the chunks of rows of
actor K, which hosts the environments of shard K. The learner takes rows in the order in which they were written, and
its ratio counts those that it has taken. An actor that is too far ahead of the learner waits.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastwm import chunks
from fastwm.agents import Agent, agent_spec
from fastwm.errors import FastwmError
from fastwm.files import check_folder, regular
from fastwm.runner.config import TrainConfig, read_config, resolve_device
from fastwm.runner.episodes import Episodes
from fastwm.runner.folder import run_folder
from fastwm.runner.log import Progress
from fastwm.runner.pace import duration
from fastwm.runner.shard import Shard, env_seed, make_replay, make_shard_env, shard_seed
from fastwm.runner.signals import signals
from fastwm.runner.trust import check_env
from fastwm.writing import remove_temporaries, replacing, write_text

log = logging.getLogger("fastwm")

ROWS = 16  # of a chunk, and of each environment
AHEAD = 4  # chunks that an actor may be ahead of the learner
PUBLISH = 5.0  # seconds between two publications of the weights
LOOK = 1.0  # seconds between an actor's looks for them
SILENT = 60.0  # seconds without rows after which the learner tells of it
READ = "read.json"
WEIGHTS = "weights.safetensors"


def folder_of(logdir: Path, number: int) -> Path:
    return logdir / "actors" / str(number)


# The learner


class ActorShard(Shard):
    """The rows of one actor, read as they come. Rows chosen by weights that are too old are left out."""

    def __init__(self, number: int, config: TrainConfig[Any], agent: Agent, logdir: Path):
        self.number, self.config, self.agent = number, config, agent
        self.rng = None
        self.folder = folder_of(logdir, number)
        self.replay = make_replay(number, config, agent)
        self.episodes = Episodes(self.replay.num_envs)
        self.dtypes = {key: value.dtype for key, value in agent.latents(agent.initial(1)).items()}
        self.pending: deque[dict[str, Tensor]] = deque()
        self.at = [0, 0]
        self.kept: deque[int] = deque(maxlen=config.keep)
        self.taking = False
        self.heard, self.silent = time.monotonic(), False
        self.updates = self.staleness = self.dropped = 0

    @property
    def described(self) -> str:
        return (
            f"environment: {self.config.env}, by {self.config.actors} actors: "
            f"fastwm act {self.config.logdir} --shard 0 ... {self.config.actors - 1}"
        )

    def choose(self, mode: str) -> None:
        """Take the next row, if there is one."""
        if not self.pending:
            self._read()
        self.taking = bool(self.pending)
        if self.taking:
            row = self.pending[0]
            row = {key: value.to(self.dtypes.get(key, value.dtype)) for key, value in row.items()}
            self.row = self.replay.accept(row)
            self.pending.popleft()
            self.record = {key: value.numpy() for key, value in row.items() if key not in self.dtypes}
            self.episodes.add(self.record)

    def _read(self) -> None:
        if self.at[1]:  # the last row of a chunk was taken
            self.at = [self.at[0] + 1, 0]
        path, now = chunks.chunk_path(self.folder, self.at[0]), time.monotonic()
        if not path.is_file():
            if now - self.heard > SILENT and not self.silent:
                self.silent = True
                log.warning("actor %d has sent nothing for %.0f s; fastwm act %s --shard %d starts it again",
                            self.number, SILENT, self.config.logdir, self.number)  # fmt: skip
            return
        rows, note = chunks.read_chunk(path)
        if self.silent:
            log.warning("actor %d is back", self.number)
        self.heard, self.silent = now, False
        self.staleness = self.updates - int(note.get("updates", 0))
        if self.staleness > self.config.max_staleness:
            self.dropped += rows["reward"].numel()
            self.at[0] += 1
            return
        self.pending.extend(chunks.rows_of(rows))

    def remember(self) -> None:
        if self.taking:
            self.replay.append(self.row)
            self.at[1] += 1

    def report(self) -> list[float]:
        return super().report() if self.taking else [0.0] * (2 + 3 * self.replay.num_envs)

    def metrics(self) -> dict[str, float]:
        values = {"staleness": self.staleness, "dropped": self.dropped, "silent": time.monotonic() - self.heard}
        return {f"actor/{self.number}/{key}": round(float(value), 1) for key, value in values.items()}

    def tell(self) -> None:
        """How far the rows were read: the actor keeps no more than some chunks ahead."""
        if self.folder.is_dir():
            write_text(self.folder / READ, str(self.at[0]))

    def load(self, saved: Path, logdir: Path) -> int:
        drawn = super().load(saved, logdir)
        if self.at[1]:
            rows, _ = chunks.read_chunk(chunks.chunk_path(self.folder, self.at[0]))
            self.pending.extend(list(chunks.rows_of(rows))[self.at[1] :])
        return drawn

    def prune(self, logdir: Path) -> None:
        """Remove the chunks whose rows are in both checkpoints."""
        super().prune(logdir)
        self.kept.append(self.at[0])
        if len(self.kept) == self.config.keep:
            for number in chunks.chunk_numbers(self.folder):
                if number < min(self.kept):
                    chunks.chunk_path(self.folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        pass


def publish(logdir: Path, name: str, agent: Agent, step: int, updates: int, ended: bool) -> None:
    """Make the weights those that actors act with, and tell whether the run has come to its end."""
    tensors = {key: value.cpu().contiguous() for key, value in agent.state_dict().items() if isinstance(value, Tensor)}
    note = {"agent": name, "step": str(step), "updates": str(updates), "ended": str(int(ended))}
    with replacing(logdir / "actors" / WEIGHTS) as temporary:
        save_file(tensors, temporary, note)


# An actor


class Weights:
    """The learner's newest weights, as an actor sees them."""

    def __init__(self, logdir: Path):
        self.path = logdir / "actors" / WEIGHTS
        self.seen: tuple[int, int] | None = None
        self.looked = -LOOK
        self.step = self.updates = 0
        self.ended = False
        self.name = ""

    def look(self, agent: Agent | None = None, at_once: bool = False) -> bool:
        """Take in what is new, at most once a second; whether there was something."""
        now = time.monotonic()
        if now - self.looked < LOOK and not at_once:
            return False
        self.looked = now
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_ino) == self.seen:
                return False
            with safe_open(regular(self.path), "pt") as file:
                note: Mapping[str, str] = file.metadata() or {}
                if agent is not None:
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):  # not there yet, or replaced at this moment
            return False
        if agent is not None:
            own = {key for key, value in agent.state_dict().items() if isinstance(value, Tensor)}
            if own != tensors.keys():
                raise FastwmError(f"{self.path} are not the weights of this run's agent: remove {self.path.parent}")
            agent.load_state_dict(tensors, strict=False)
            self.seen = stat.st_mtime_ns, stat.st_ino
        self.name, self.step, self.updates = note["agent"], int(note["step"]), int(note["updates"])
        self.ended = note["ended"] == "1"
        return True


class Actor:
    """One actor: it acts by the newest weights, and writes what it sees."""

    def __init__(self, logdir: Path, number: int, device: str, patience: float, trust: bool):
        self.logdir, self.number, self.patience = logdir, number, patience
        self.stop: str | None = None
        self.weights = Weights(logdir)
        begun = time.monotonic()
        while not self.weights.look(at_once=True):
            if time.monotonic() - begun > patience:
                raise FastwmError(
                    f"no weights have come to {self.weights.path} within {duration(patience)}: start the learner, "
                    "fastwm train ... --actors N, and see that both have the same folder"
                )
            time.sleep(0.2)
        check_folder(logdir, trust)
        name = self.weights.name
        self.spec, self.device = agent_spec(name), resolve_device(device)
        config: TrainConfig[Any] = read_config(logdir / "config.yaml", TrainConfig(self.spec.config()), name)
        if not 0 <= number < config.actors:
            raise FastwmError(f"the run in {logdir} has {config.actors} actors, numbered from 0: there is no {number}")
        config = replace(config, trust=trust, replay_capacity=config.num_envs * (config.batch_length + 1))
        check_env(logdir / "config.yaml", config)
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)

    def run(self) -> str:
        """Act until the learner has finished, or a signal comes; returns why it ended."""
        folder = folder_of(self.logdir, self.number)
        with run_folder(folder):
            remove_temporaries(folder)
            number = max([n + 1 for n in chunks.chunk_numbers(folder)], default=chunks.read_number(folder / READ))
            env = make_shard_env(self.number, self.config, None, env_seed(self.config.seed, number + 1))
            try:
                agent = self.spec.agent(env.obs_space, env.act_space, self.config.agent).to(self.device).eval()
                self.weights.look(agent, at_once=True)
                shard = Shard(self.number, self.config, env, agent)
                torch.manual_seed(shard_seed(self.config.seed, self.number, 3 + number))
                shard.rng = None
                return self._act(shard, chunks.ChunkWriter(folder, ROWS, number))
            finally:
                env.close()

    def _act(self, shard: Shard, writer: chunks.ChunkWriter) -> str:
        rows, agent = 0, shard.agent
        with Progress(self.config.log_every) as progress, signals(self):
            progress.say(shard.described)
            while not self.stop and not self.weights.ended:
                self.weights.look(agent)
                if writer.number - chunks.read_number(writer.folder / READ) > AHEAD:
                    self._wait(writer.folder / READ, agent, progress)
                    continue
                shard.choose("random" if self.weights.step < self.config.prefill else "train")
                writer.add(shard.row, updates=self.weights.updates)
                rows += shard.env.num_envs
                progress.show(f"actor {self.number}: {rows:,} rows, weights of update {self.weights.updates:,}")
        writer.flush()
        return f"{self.stop or 'the learner has finished'}: {rows:,} rows written"

    def _wait(self, read: Path, agent: Agent, progress: Progress) -> None:
        """Until the learner has read more."""
        before, begun = chunks.read_number(read), time.monotonic()
        while chunks.read_number(read) == before and not self.stop and not self.weights.ended:
            if time.monotonic() - begun > self.patience:
                raise FastwmError(
                    f"the learner has read nothing for {duration(self.patience)}: start it again, then this"
                )
            self.weights.look(agent)
            progress.show(f"actor {self.number}: waiting for the learner")
            time.sleep(0.1)


def act(logdir: Path, number: int, device: str = "auto", patience: float = 600.0, trust: bool = False) -> str:
    """Act for the run in `logdir`, whose learner runs elsewhere, with the environments of shard `number`."""
    return Actor(logdir, number, device, patience, trust).run()
