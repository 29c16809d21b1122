"""The loop: act, remember, learn, and be able to stop at any moment."""

import math
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastwm.agents import agent_spec
from fastwm.agents.results import Streams
from fastwm.agents.world_models.stage import fingerprint
from fastwm.distributed import ALONE, Alone, Lost, ranks
from fastwm.errors import FastwmError
from fastwm.files import Kinds, check, check_folder
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots
from fastwm.runner.actors import PUBLISH, ActorShard, publish
from fastwm.runner.config import TrainConfig, check_agreed, misfit_explained, resolve_device, write_config
from fastwm.runner.episodes import Episodes
from fastwm.runner.folder import LOCK, run_folder
from fastwm.runner.graph import fastest_update
from fastwm.runner.log import MetricsLog, Progress
from fastwm.runner.offline import OfflineShard, Stored
from fastwm.runner.pace import Pace, check_learns, duration, first_update, waiting
from fastwm.runner.shard import Shard, check_shards, env_seed, make_shard_env, own_shards, stream_keys
from fastwm.runner.signals import signals
from fastwm.runner.sinks import sinks_of
from fastwm.runner.watch import Watch
from fastwm.writing import remove_temporaries

STATE: dict[str, Kinds] = {"step": int, "decisions": int, "updates": int, "owed": int, "seconds": float,
         "credit": (float, type(None)), "rng": dict}  # fmt: skip


Callback = Callable[["Trainer"], None]
"""Called after every step of the environments, with the trainer; setting its `stop` to a reason ends the run, saved."""


class Ratio:
    """Fractional counter: how many updates are due after one more step; the first call answers 1."""

    def __init__(self, per_step: float):
        self.per_step = per_step
        self.credit: float | None = None

    def __call__(self) -> int:
        if self.per_step <= 0:
            return 0
        self.credit = 1.0 if self.credit is None else self.credit + self.per_step
        due = math.floor(self.credit + 1e-9)
        self.credit -= due
        return due


class Told(NamedTuple):
    """One iteration as all processes know it: what to do after it, and what happened in all environments."""

    stop: bool
    log: bool
    save: bool
    rows: int
    decisions: int
    ended: list[tuple[float, int]]
    """Return and length of the episodes that have ended, in the order of the environments."""


class Trainer:
    """One run in one folder. `step` counts rows of replay, `decisions` those of them that were acted on.

    It hosts the shards that `group` leaves to this process. All processes make the same updates at the same steps:
    what one of them decides by its clock, is signalled or suffers is agreed upon once an iteration, before the updates.
    """

    def __init__(
        self, name: str, config: TrainConfig[Any], logdir: Path, env: Any = None, callbacks: Sequence[Callback] = (),
        group: Alone = ALONE,
    ):  # fmt: skip
        if config.actors and config.shards == 1:
            config = replace(config, shards=config.actors)
        check_learns(config)
        check_shards(config, group.world)
        self.name, self.config, self.logdir, self.group = name, config, logdir, group
        self.device = resolve_device(config.device, group)
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.saved = self._newest()
        meta = checkpoint.describe(self.saved) if self.saved else {}
        if self.saved and (begun := meta.get("shards", 1)) != config.shards:
            raise FastwmError(
                f"the run in {logdir} was begun with --shards {begun} and cannot go on with {config.shards}: "
                f"leave out --shards {config.shards}, or give another --logdir"
            )
        self.starts = meta.get("starts", 1) + 1 if self.saved else 1
        seed, own = env_seed(config.seed, self.starts), own_shards(config, group)
        stored = Stored(Path(config.offline).expanduser(), config.trust) if config.offline else None
        envs = [
            make_shard_env(number, config, env, seed) for number in (own[:1] if config.actors else own) if not stored
        ]
        self.obs_space: Any = stored.spaces[0] if stored else envs[0].obs_space
        self.act_space: Any = stored.spaces[1] if stored else envs[0].act_space
        spec = agent_spec(name)
        build = partial(spec.agent, self.obs_space, self.act_space, config.agent)
        if self.saved:
            checkpoint.check_spaces(meta, self.obs_space, self.act_space, config.env)
            with misfit_explained(logdir, config, f"the run in {logdir}", "give another --logdir"):
                checkpoint.check_fits(self.saved, build)
        self.agent = build().to(self.device)
        self.agent.group = group
        if config.shards > 1:
            self.agent.streams = Streams(stream_keys(config, own), self.device)
        self.shards = [Shard(number, config, own_env, self.agent) for number, own_env in zip(own, envs)]
        if stored:
            self.shards = [OfflineShard(stored, config, self.agent)]
        if config.actors:
            envs[0].close()  # it has told its spaces
            self.shards = [ActorShard(number, config, self.agent, logdir) for number in own]
        self.published = -PUBLISH
        self.ratio = Ratio(config.train_ratio / (config.batch_size * config.batch_length))
        self.recent: deque[float] = deque(maxlen=20)
        self.step = self.decisions = self.updates = 0
        self.owed = config.pretrain
        self.seconds = 0.0
        self.sums: dict[str, Any] = defaultdict(float)
        self.summed = 0
        self.pace = Pace()
        self.stop: str | None = None
        self.ending = False
        self.begun = False
        self.resume()
        self.begun_at = self.step
        for shard in self.shards:
            if not shard.replay.added:
                shard.read()
        self.update = fastest_update(self.agent)
        self.callbacks: list[Callback] = [Watch(self, env), *callbacks] if group.rank == 0 else []
        self.watched = group.world == 1 or bool(callbacks) or config.eval_every + config.video_every > 0

    @property
    def replay(self) -> Replay:
        """The first replay of this process; those of all shards hold equally many rows."""
        return self.shards[0].replay

    @property
    def episodes(self) -> Episodes:
        """The running episodes of the first shard of this process."""
        return self.shards[0].episodes

    def close(self) -> None:
        """Free the environments."""
        for shard in self.shards:
            shard.close()

    # Checkpoints

    def _newest(self) -> Path | None:
        """The newest readable checkpoint, which rank 0 finds for all."""
        with self.group.together():
            found = checkpoint.newest(self.logdir, Path) if self.group.rank == 0 else None
        name = self.group.words(found.name if found else "")[0]
        return checkpoint.folder(self.logdir) / name if name else None

    def resume(self) -> None:
        """Continue from the newest readable checkpoint, if there is one."""
        if not self.saved:
            return
        state = self._load(self.saved)
        for key in ("step", "decisions", "updates", "owed", "seconds"):
            setattr(self, key, state[key])
        self.ratio.credit = state["credit"]
        if self.config.shards == 1:
            checkpoint.set_rng_state(state["rng"])

    def _load(self, path: Path) -> dict[str, Any]:
        state = checkpoint.load_agent(path, self.agent)
        check(state, STATE, str(path))
        if self.agent.streams is None:
            self.shards[0].load_replay(path, self.logdir, state["more"])
        else:
            for shard, stream in zip(self.shards, self.agent.streams.state):
                stream[1] = shard.load(path, self.logdir)
        return state

    def save(self) -> None:
        """Write a checkpoint; weights that are not finite are refused, so that the one before stands."""
        for name, p in self.agent.named_parameters():
            if not torch.isfinite(p).all():
                raise FastwmError(f"training diverged by step {self.step}: {name} is not finite; nothing was saved")
        self._check_equal()
        state = {key: getattr(self, key) for key in ("step", "decisions", "updates", "owed", "seconds")}
        state |= {"credit": self.ratio.credit, "rng": checkpoint.rng_state()}
        with self.group.together():
            if self.group.rank == 0:
                checkpoint.save(self.logdir, self.step, self.agent, state, self.meta(), self._save_shards,
                                self.config.keep)  # fmt: skip
            else:
                self._save_shards(checkpoint.unfinished(self.logdir, self.step))
        with self.group.together():
            for shard in self.shards:
                shard.prune(self.logdir)

    def meta(self) -> dict[str, Any]:
        """A checkpoint's description of the run."""
        return {
            "agent": self.name,
            "obs_space": checkpoint.space_to_json(self.obs_space),
            "act_space": checkpoint.space_to_json(self.act_space),
            "oldest_row": self.replay.oldest,
            "starts": self.starts,
            "shards": self.config.shards,
        }

    def _save_shards(self, path: Path) -> dict[str, Any]:
        """Put the shards' parts into the unfinished checkpoint `path`, which rank 0 has made and will finish."""
        if self.agent.streams is None:
            return self.replay.save(path, self.logdir / "replay")
        with self.group.together():
            pass
        with self.group.together():
            for shard, stream in zip(self.shards, self.agent.streams.state.tolist()):
                shard.save(path, self.logdir, stream[1])
        return {}

    def _check_equal(self) -> None:
        """Refuse processes whose agents are no longer the same to the bit."""
        if self.group.world == 1:
            return
        sums = self.group.words(str(fingerprint(self.agent)))
        if other := next((rank for rank, value in enumerate(sums) if value != sums[0]), 0):
            raise FastwmError(
                f"the agents of ranks 0 and {other} have parted by step {self.step}, nothing was saved: are they on "
                "different hardware, or different versions? The same command continues from the last checkpoint"
            )

    # The loop

    def run(self) -> None:
        """Train until `steps`; a signal, an error and the end all leave a checkpoint behind."""
        c, first = self.config, self.group.rank == 0
        with self.group.together():
            if first:
                checkpoint.clean(self.logdir)
                checkpoint.set_aside_newer(self.logdir, self.saved)
            for shard in self.shards:
                remove_temporaries(shard.folders(self.logdir, self.logdir)[1])
        with Progress(c.log_every) as progress, signals(self, patient=self.group.world > 1):
            self.progress = progress
            progress.say(self.shards[0].described)
            progress.say(self._summary())
            progress.say(f"settings: {self._settings()}")
            if self.step:
                progress.say(f"continuing at step {self.step:,}, update {self.updates:,}")
            if reason := self._waiting():
                progress.say(reason)
            try:
                self._loop(progress)
            except BaseException as error:
                if self.begun and self._all_know(error):
                    self.save()
                raise
            finally:
                if self.begun and self.group.rank == 0:
                    self.log.close()
            if self.begun:
                self.save()
            progress.say(self._status())
        if self.stop:
            saved = f"saved at step {self.step:,}" if self.begun else "nothing new to save"
            print(f"{self.stop}: {saved}; the same command continues", flush=True)
        elif first:
            if not self.updates and (reason := self._waiting()):
                print(f"nothing was learnt in {self.step:,} steps: {reason}", flush=True)
            for path in plots.write_all(self.logdir, self.agent, self.replay):
                print(f"wrote {path}", flush=True)

    def _all_know(self, error: BaseException) -> bool:
        """Whether all processes have this error or were told of it, so that they can still save together.

        What an update refuses, it refuses on all of them.
        """
        told = hasattr(error, "heard") or (isinstance(error, FastwmError) and not isinstance(error, Lost))
        return told or self.group.world == 1

    def _loop(self, progress: Progress) -> None:
        logged = saved = clock = time.monotonic()
        while self.step < self.config.steps and not self._stopping():
            error, now = self._choose(), time.monotonic()
            told = self._agree(error, now - logged >= self.config.log_every, now - saved >= self.config.save_every)
            self._remember(told)
            updates = self.updates
            self._learn(told.rows)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if self.updates > updates or not self.config.train_ratio:
                self.pace.mark(self.step, self.seconds)
            if told.log:
                logged = now
                self._log_training()
            if told.save:
                self.save()
                saved = time.monotonic()
            if self.config.actors:
                self._serve(told.rows)
            progress.show(self._status())
            called = time.monotonic()
            if self.watched:
                with self.group.together():
                    for callback in self.callbacks:
                        callback(self)
            clock += time.monotonic() - called  # theirs is no time of training

    def _stopping(self) -> bool:
        """Whether a signal asked for an end; one of several processes goes on until all know of it."""
        return self.ending if self.group.world > 1 else self.stop is not None

    def _choose(self) -> Exception | None:
        """Step the environments and choose actions; returns the error, if one comes, for `_agree` to raise."""
        try:
            for shard in self.shards:
                shard.choose("random" if self.step < self.config.prefill else "train")
        except ValueError as error:
            if self.begun:
                return error
            misfit = FastwmError(
                f"the saved replay does not fit this environment and agent: {error}; "
                "add --fresh-replay to continue with an empty replay"
            )
            misfit.__cause__ = error
            return misfit
        except Exception as error:
            return error
        return None

    def _agree(self, error: Exception | None, log: bool, save: bool) -> Told:
        """Tell all processes of this one's iteration, and hear of theirs; rank 0's clock decides when to log and save.

        An error of one of them is raised in all, before any row of this iteration is in replay.
        """
        wishes = [error is not None, self.stop is not None, log, save]
        own = [] if error else [number for shard in self.shards for number in shard.report()]
        width = len(self.shards) * (2 + 3 * self.config.num_envs // self.config.shards)
        heard = np.array(self.group.report([*wishes, *(own or [0.0] * width)]))
        if heard[:, 0].any():
            with self.group.together():
                if error:
                    raise error
        if heard[:, 1].any():
            self.stop, self.ending = next(filter(None, self.group.words(self.stop or ""))), True
        shards = heard[:, 4:].reshape(self.config.shards, -1)
        ended = shards[:, 2:].reshape(-1, 3)
        rows, decisions = shards[:, :2].sum(0).astype(int).tolist()
        over = [(float(value), int(length)) for last, value, length in ended if last]
        return Told(bool(heard[:, 1].any()), bool(heard[0, 2]), bool(heard[0, 3]), rows, decisions, over)

    def _remember(self, told: Told) -> None:
        """Put the rows into replay, and tell of the episodes that ended with them."""
        for shard in self.shards:
            shard.remember()
        self.step += told.rows
        self.decisions += told.decisions
        if not self.begun:
            self._begin()
        if told.ended:
            self.recent.extend(value for value, _ in told.ended)
            with self.group.together():
                for value, length in told.ended:
                    self._write({"episode/return": value, "episode/length": length, "seconds": round(self.seconds, 1)})

    def _begin(self) -> None:
        """The first row was acted on and stored: the settings work, so they become the folder's."""
        with self.group.together():
            if self.group.rank == 0:
                sinks = sinks_of(self.config, self.logdir, asdict(self.config))
                self.log = MetricsLog(self.logdir, self.begun_at, sinks)
                write_config(self.logdir / "config.yaml", self.name, self.config)
        self.begun = True

    def _write(self, values: dict[str, float]) -> None:
        if self.group.rank == 0:
            self.log.write(self.step, values)

    def _learn(self, rows: int) -> None:
        """As many updates as the steps taken owe, once replay holds a batch's worth of windows."""
        c = self.config
        prefill = 0 if c.offline else c.prefill
        windows = sum(len(shard.replay) for shard in self.shards) * self.group.world
        if self.step < prefill or windows < c.batch_size * c.batch_length:
            return
        self.owed += sum(self.ratio() for _ in range(rows))
        if self.step % c.update_every >= c.num_envs:
            return
        for _ in range(self.owed):
            metrics = self.update(self._sample(), write_back=self._write_back)
            for key, value in metrics.items():
                self.sums[key] += value
            self.summed += 1
            self.updates += 1
            self.owed -= 1

    def _sample(self) -> dict[str, Tensor]:
        """This process's part of a batch [1+T, B, ...]: as many windows of each shard that has any, side by side."""
        able = [shard for shard in self.shards if len(shard.replay)]
        total = self.config.batch_size // self.group.world
        ends = [total * i // len(able) for i in range(len(able) + 1)]
        self.drawn = [(shard, end - begin) for shard, begin, end in zip(able, ends, ends[1:])]
        parts = [shard.replay.sample(count) for shard, count in self.drawn]
        return parts[0] if len(parts) == 1 else {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]}

    def _write_back(self, index: Tensor, latents: dict[str, Tensor]) -> None:
        """Each shard's windows go back to its replay."""
        begin = 0
        for shard, count in self.drawn:
            own = slice(begin, begin + count)
            shard.replay.write_back(index[:, own], {key: value[:, own] for key, value in latents.items()})
            begin += count

    def _serve(self, rows: int) -> None:
        """Give the actors new weights now and then, and wait a moment where they had no rows."""
        for shard in self.shards:
            shard.updates = self.updates
        ended = self.step >= self.config.steps
        if ended or time.monotonic() - self.published >= PUBLISH:
            publish(self.logdir, self.name, self.agent, self.step, self.updates, ended)
            for shard in self.shards:
                shard.tell()
            self.published = time.monotonic()
        if not rows:
            time.sleep(0.02)

    def _log_training(self) -> None:
        self.agent.check_finite()
        if self.summed:
            sums = torch.tensor([float(value) for value in self.sums.values()], dtype=torch.float64)
            self.group.mean_([sums])
            values = {f"train/{key}": value / self.summed for key, value in zip(self.sums, sums.tolist())}
            if broken := [key for key, value in values.items() if not math.isfinite(value)]:
                raise FastwmError(f"training diverged: {', '.join(broken)} not finite at step {self.step}")
            for shard in self.shards:
                values |= shard.metrics()
            values |= {"updates": self.updates, "decisions": self.decisions, "seconds": round(self.seconds, 1)}
            with self.group.together():
                self._write(values)
            self.sums.clear()
            self.summed = 0

    # Telling

    def _summary(self) -> str:
        c = self.config
        params = sum(p.numel() for p in self.agent.parameters() if p.requires_grad)
        every = c.batch_size * c.batch_length / max(c.train_ratio, 1e-9)
        parts = f" in {c.shards} shards on {self.group.world} processes" if c.shards > 1 else ""
        return (
            f"{self.name}: {params:,} parameters on {self.device}{parts}; an update replays {c.batch_size} x "
            f"{c.batch_length} steps, train ratio {c.train_ratio:g} replayed steps a step = one update every {every:g} "
            "steps"
        )

    def _settings(self) -> str:
        """Which preset gave them, and how much work they ask for."""
        c = self.config
        first = 0 if c.offline else first_update(c)
        updates = int(max(c.steps - first, 0) * c.train_ratio / (c.batch_size * c.batch_length))
        source = f"preset {' '.join(c.preset)}" if c.preset else "the official defaults"
        return f"{source} (others: --preset); {c.steps:,} steps and about {updates:,} updates"

    def _status(self) -> str:
        c, recent = self.config, self.recent
        score = f"return {np.mean(recent):.1f} (last {len(recent)})" if recent else "no episode yet"
        later = "" if self.updates or not self._waiting() else f", the first at step {first_update(c):,}"
        left = self.pace.seconds_for(c.steps - self.step)
        time_left = "" if left is None else f", about {duration(left)} left"
        return (
            f"step {self.step:,}/{c.steps:,}  {score}  updates {self.updates:,}{later}  {self.seconds:.0f} s{time_left}"
        )

    def _waiting(self) -> str:
        """Why there are no updates yet, where that is so."""
        before = self.step - sum(shard.replay.added * shard.replay.num_envs for shard in self.shards) * self.group.world
        return waiting(self.config, self.step, before) if self.config.train_ratio and not self.config.offline else ""


def train(
    name: str, config: TrainConfig[Any], logdir: Path, env: Any = None, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """Start or continue the run in `logdir`; `env`, an object that `make_env` takes, replaces the name in `config`."""
    with ranks() as group, group.together():
        check_agreed(group, config)
        with shared_folder(logdir, group):
            check_folder(logdir, config.trust)
            trainer = Trainer(name, config, logdir, env, callbacks, group)
            try:
                trainer.run()
            finally:
                trainer.close()
    return trainer


@contextmanager
def shared_folder(logdir: Path, group: Alone) -> Iterator[None]:
    """Rank 0 holds `logdir` for the run, and all processes see it."""
    with ExitStack() as held:
        with group.together():
            if group.rank == 0:
                held.enter_context(run_folder(logdir))
        with group.together():
            lock = logdir / LOCK
            seen = group.words(lock.read_text() if lock.is_file() else "")
            if seen[group.rank] != seen[0]:
                raise FastwmError(
                    f"rank {group.rank} on {socket.gethostname()} does not see the {logdir} of rank 0: --logdir must "
                    "be on storage that all hosts share"
                )
        yield
