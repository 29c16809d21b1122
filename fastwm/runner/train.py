"""The loop: act, remember, learn, and be able to stop at any moment."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastwm.agents import agent_spec
from fastwm.envs import Record, describe, make_env
from fastwm.errors import FastwmError
from fastwm.files import Kinds, check, check_folder
from fastwm.replay import SAVED, Replay
from fastwm.runner import checkpoint, plots
from fastwm.runner.config import (
    TrainConfig,
    env_options,
    env_source,
    misfit_explained,
    replay_rows,
    resolve_device,
    write_config,
)
from fastwm.runner.episodes import Episodes
from fastwm.runner.folder import run_folder
from fastwm.runner.graph import fastest_update
from fastwm.runner.log import MetricsLog, Progress
from fastwm.runner.pace import Pace, check_learns, duration, first_update, waiting
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


class Trainer:
    """One run in one folder. `step` counts rows of replay, `decisions` those of them that were acted on."""

    def __init__(
        self, name: str, config: TrainConfig[Any], logdir: Path, env: Any = None, callbacks: Sequence[Callback] = ()
    ):
        check_learns(config)
        self.name, self.config, self.logdir = name, config, logdir
        self.device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.saved: Path | None = checkpoint.newest(logdir, Path)
        meta = checkpoint.describe(self.saved) if self.saved else {}
        self.starts = meta.get("starts", 1) + 1 if self.saved else 1
        self.env = make_env(
            env_source(config, env), config.num_envs, env_seed(config.seed, self.starts), **env_options(config)
        )
        spec = agent_spec(name)
        build = partial(spec.agent, self.env.obs_space, self.env.act_space, config.agent)
        if self.saved:
            checkpoint.check_spaces(meta, self.env.obs_space, self.env.act_space, config.env)
            with misfit_explained(logdir, config, f"the run in {logdir}", "give another --logdir"):
                checkpoint.check_fits(self.saved, build)
        self.agent = build().to(self.device)
        self.replay = Replay(
            replay_rows(config), config.num_envs, config.batch_length + 1, seed=config.seed,
            latent_keys=self.agent.latent_keys, online=self.agent.online, prioritize_ends=self.agent.prioritize_ends,
        )  # fmt: skip
        self.ratio = Ratio(config.train_ratio / (config.batch_size * config.batch_length))
        self.episodes = Episodes(config.num_envs)
        self.step = self.decisions = self.updates = 0
        self.owed = config.pretrain
        self.seconds = 0.0
        self.sums: dict[str, Any] = defaultdict(float)
        self.summed = 0
        self.pace = Pace()
        self.stop: str | None = None
        self.begun = False
        self.resume()
        self.update = fastest_update(self.agent)
        self.callbacks: list[Callback] = [Watch(self, env), *callbacks]

    # Checkpoints

    def resume(self) -> None:
        """Continue from the newest readable checkpoint, if there is one."""
        if not self.saved:
            return
        state = self._load(self.saved)
        for key in ("step", "decisions", "updates", "owed", "seconds"):
            setattr(self, key, state[key])
        self.ratio.credit = state["credit"]
        checkpoint.set_rng_state(state["rng"])

    def _load(self, path: Path) -> dict[str, Any]:
        state = checkpoint.load_agent(path, self.agent)
        check(state, STATE, str(path))
        if self.config.fresh_replay:
            return state
        latents = self.agent.latents(self.agent.initial(1))
        try:
            check(state["more"], SAVED, "the saved replay")
            self.check_windows(state["more"])
            dtypes = {key: value.dtype for key, value in latents.items()}
            self.replay.load(path, self.logdir / "replay", state["more"], dtypes)
        except FastwmError as error:
            raise FastwmError(f"{error}; add --fresh-replay to continue with an empty replay") from error
        return state

    def check_windows(self, saved: Mapping[str, Any]) -> None:
        """A replay goes on with as many environments, and as long windows, as it was begun with."""
        c = self.config
        for name, was, now in (
            ("num_envs", saved["num_envs"], c.num_envs),
            ("batch_length", saved["length"] - 1, c.batch_length),
        ):
            if was != now:
                raise FastwmError(
                    f"the run in {self.logdir} was begun with {name} {was} and its replay fits no other: "
                    f"leave out --{name.replace('_', '-')} {now}, give another --logdir"
                )

    def save(self) -> None:
        """Write a checkpoint; weights that are not finite are refused, so that the one before stands."""
        for name, p in self.agent.named_parameters():
            if not torch.isfinite(p).all():
                raise FastwmError(f"training diverged by step {self.step}: {name} is not finite; nothing was saved")
        state = {key: getattr(self, key) for key in ("step", "decisions", "updates", "owed", "seconds")}
        state |= {"credit": self.ratio.credit, "rng": checkpoint.rng_state()}
        keep = self.config.keep
        checkpoint.save(self.logdir, self.step, self.agent, state, self.meta(), self._save_replay, keep)
        self.replay.prune(self.logdir / "replay", checkpoint.oldest_row(self.logdir))

    def meta(self) -> dict[str, Any]:
        """A checkpoint's description of the run."""
        return {
            "agent": self.name,
            "obs_space": checkpoint.space_to_json(self.env.obs_space),
            "act_space": checkpoint.space_to_json(self.env.act_space),
            "oldest_row": self.replay.oldest,
            "starts": self.starts,
        }

    def _save_replay(self, path: Path) -> dict[str, Any]:
        return self.replay.save(path, self.logdir / "replay")

    # The loop

    def run(self) -> None:
        """Train until `steps`; a signal, an error and the end all leave a checkpoint behind."""
        c = self.config
        checkpoint.clean(self.logdir)
        checkpoint.set_aside_newer(self.logdir, self.saved)
        remove_temporaries(self.logdir / "replay")
        with Progress(c.log_every) as progress, signals(self):
            self.progress = progress
            progress.say(f"environment: {c.env}: {describe(self.env)}")
            progress.say(self._summary())
            progress.say(f"settings: {self._settings()}")
            if self.step:
                progress.say(f"continuing at step {self.step:,}, update {self.updates:,}")
            if reason := self._waiting():
                progress.say(reason)
            try:
                self._loop(progress)
            finally:
                if self.begun:
                    self.save()
                    self.log.close()
            progress.say(self._status())
        if self.stop:
            saved = f"saved at step {self.step:,}" if self.begun else "nothing new to save"
            print(f"{self.stop}: {saved}; the same command continues", flush=True)
        else:
            if not self.updates and (reason := self._waiting()):
                print(f"nothing was learnt in {self.step:,} steps: {reason}", flush=True)
            for path in plots.write_all(self.logdir, self.agent, self.replay):
                print(f"wrote {path}", flush=True)

    def _loop(self, progress: Progress) -> None:
        record, state = self.env.reset(), None
        logged = saved = clock = time.monotonic()
        while self.step < self.config.steps and not self.stop:
            action, state = self._remember(record, state)
            if not self.begun:
                self._begin()
            updates = self.updates
            self._learn()
            record = self.env.step(action)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if self.updates > updates or not self.config.train_ratio:
                self.pace.mark(self.step, self.seconds)
            if now - logged >= self.config.log_every:
                logged = now
                self._log_training()
            if now - saved >= self.config.save_every:
                self.save()
                saved = time.monotonic()
            progress.show(self._status())
            called = time.monotonic()
            for callback in self.callbacks:
                callback(self)
            clock += time.monotonic() - called  # theirs is no time of training

    def _begin(self) -> None:
        """The first row was acted on and stored: the settings work, so they become the folder's."""
        sinks = sinks_of(self.config, self.logdir, asdict(self.config))
        self.log = MetricsLog(self.logdir, self.step - self.config.num_envs, sinks)
        write_config(self.logdir / "config.yaml", self.name, self.config)
        self.begun = True

    def _remember(self, record: Record, state: Any) -> tuple[Any, Any]:
        """Choose actions for a record and put the row into replay."""
        action, state = self.agent.act(record, state, "random" if self.step < self.config.prefill else "train")
        actions = action if isinstance(action, dict) else {"action": action}
        row = {key: value.cpu() for key, value in (actions | self.agent.latents(state)).items()}
        try:
            self.replay.add(record | row)
        except ValueError as error:
            if self.begun:
                raise
            raise FastwmError(
                f"the saved replay does not fit this environment and agent: {error}; "
                "add --fresh-replay to continue with an empty replay"
            ) from error
        self.step += self.config.num_envs
        self.decisions += int((~record["is_last"]).sum())
        for value, length in self.episodes.add(record):
            ended = {"episode/return": value, "episode/length": length, "seconds": round(self.seconds, 1)}
            self.log.write(self.step, ended)
        return action, state

    def _learn(self) -> None:
        """As many updates as the steps taken owe, once replay holds a batch's worth of windows."""
        c = self.config
        if self.step < c.prefill or len(self.replay) < c.batch_size * c.batch_length:
            return
        self.owed += sum(self.ratio() for _ in range(c.num_envs))
        if self.step % c.update_every >= c.num_envs:
            return
        for _ in range(self.owed):
            metrics = self.update(self.replay.sample(c.batch_size), write_back=self.replay.write_back)
            for key, value in metrics.items():
                self.sums[key] += value
            self.summed += 1
            self.updates += 1
            self.owed -= 1

    def _log_training(self) -> None:
        self.agent.check_finite()
        if self.summed:
            values = {f"train/{key}": float(value) / self.summed for key, value in self.sums.items()}
            if broken := [key for key, value in values.items() if not math.isfinite(value)]:
                raise FastwmError(f"training diverged: {', '.join(broken)} not finite at step {self.step}")
            values |= {"updates": self.updates, "decisions": self.decisions, "seconds": round(self.seconds, 1)}
            self.log.write(self.step, values)
            self.sums.clear()
            self.summed = 0

    # Telling

    def _summary(self) -> str:
        c = self.config
        params = sum(p.numel() for p in self.agent.parameters() if p.requires_grad)
        every = c.batch_size * c.batch_length / max(c.train_ratio, 1e-9)
        return (
            f"{self.name}: {params:,} parameters on {self.device}; an update replays {c.batch_size} x {c.batch_length} "
            f"steps, train ratio {c.train_ratio:g} replayed steps a step = one update every {every:g} steps"
        )

    def _settings(self) -> str:
        """Which preset gave them, and how much work they ask for."""
        c = self.config
        updates = int(max(c.steps - first_update(c), 0) * c.train_ratio / (c.batch_size * c.batch_length))
        source = f"preset {' '.join(c.preset)}" if c.preset else "the official defaults"
        return f"{source} (others: --preset); {c.steps:,} steps and about {updates:,} updates"

    def _status(self) -> str:
        c, recent = self.config, self.episodes.recent
        score = f"return {np.mean(recent):.1f} (last {len(recent)})" if recent else "no episode yet"
        later = "" if self.updates or not self._waiting() else f", the first at step {first_update(c):,}"
        left = self.pace.seconds_for(c.steps - self.step)
        time_left = "" if left is None else f", about {duration(left)} left"
        return (
            f"step {self.step:,}/{c.steps:,}  {score}  updates {self.updates:,}{later}  {self.seconds:.0f} s{time_left}"
        )

    def _waiting(self) -> str:
        """Why there are no updates yet, where that is so."""
        before = self.step - self.replay.added * self.config.num_envs
        return waiting(self.config, self.step, before) if self.config.train_ratio else ""


def env_seed(seed: int, starts: int) -> int:
    """The environments' seed: the run's own at its first start and a new one at every other, so that a run that goes
    on meets new episodes, not once more those it has seen."""
    return seed if starts == 1 else int(np.random.SeedSequence(seed, spawn_key=(starts,)).generate_state(1)[0] >> 1)


def train(
    name: str, config: TrainConfig[Any], logdir: Path, env: Any = None, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """Start or continue the run in `logdir`; `env`, an object that `make_env` takes, replaces the name in `config`."""
    with run_folder(logdir):
        check_folder(logdir, config.trust)
        trainer = Trainer(name, config, logdir, env, callbacks)
        try:
            trainer.run()
        finally:
            trainer.env.close()
    return trainer
