"""Runs in stages: each has a folder, a checkpoint and metrics of its own, and goes on where it was."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastwm.agents import agent_spec
from fastwm.agents.world_models.stage import Stopped
from fastwm.distributed import ranks
from fastwm.envs import describe, make_env
from fastwm.errors import FastwmError
from fastwm.files import check_folder
from fastwm.runner import checkpoint
from fastwm.runner.config import StagedConfig, env_options, env_source, misfit_explained, resolve_device, write_config
from fastwm.runner.folder import run_folder
from fastwm.runner.log import MetricsLog, Progress
from fastwm.runner.signals import signals
from fastwm.runner.sinks import sinks_of
from fastwm.writing import disk_errors


class StageRun:
    """The environment of a stage: its folder, settings and signals; see `fastwm.agents.world_models.stage.StageRun`."""

    def __init__(self, trainer: "StagedTrainer", folder: Path, publish_base: int):
        self.trainer, self.folder = trainer, folder
        self.publish_base = publish_base
        self.seed, self.env = trainer.config.seed, trainer.env
        self.env_args = env_options(trainer.config)
        self.metrics: MetricsLog | None = None
        self.saved_at = sys.maxsize
        self.last = {"log": -float("inf"), "save": time.monotonic()}

    def say(self, text: str) -> None:
        self.trainer.progress.say(text)

    def show(self, text: str) -> None:
        self.trainer.progress.show(text)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.metrics is None:  # a run that was killed may have logged past what it saved
            config = self.trainer.config
            self.metrics = MetricsLog(self.folder, self.saved_at, sinks_of(config, self.folder, asdict(config)))
        self.metrics.write(step, values)

    def due(self, what: str) -> bool:
        now = time.monotonic()
        if now - self.last[what] < getattr(self.trainer.config, f"{what}_every"):
            return False
        self.last[what] = now
        return True

    def stopping(self) -> bool:
        return self.trainer.stop is not None

    def save(self, step: int, module: nn.Module, state: dict[str, Any]) -> None:
        checkpoint.save(self.folder, step, module, state, {}, keep=self.trainer.config.keep)

    def restore(self, module: nn.Module) -> dict[str, Any] | None:
        def load(path: Path) -> dict[str, Any]:
            self.saved_at = int(path.name)
            what, remedy = f"stage {self.folder.name}", f"remove {self.folder} to run the stage again"
            with misfit_explained(self.trainer.logdir, self.trainer.config, what, remedy):
                state = checkpoint.load_agent(path, module)
            checkpoint.set_aside_newer(self.folder, path)
            return state

        self.saved_at = 0
        checkpoint.clean(self.folder)
        state: dict[str, Any] | None = checkpoint.newest(self.folder, load)
        return state

    def publish(self, agent: nn.Module, count: int = 0) -> None:
        self.trainer.publish(self.publish_base + count)


class StagedTrainer:
    """All stages of all iterations of one run, in one folder."""

    def __init__(self, name: str, config: StagedConfig[Any], logdir: Path, env: Any = None):
        self.name, self.config, self.logdir = name, config, logdir
        self.spec = agent_spec(name)
        names = [stage.name for stage in self.spec.stages]
        if config.stage and config.stage not in names:
            raise FastwmError(f"unknown stage {config.stage!r}; there is: {', '.join(names)}")
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.env = env_source(config, env)
        probe = make_env(self.env, 1, config.seed, **env_options(config))
        self.spaces, self.described = (probe.obs_space, probe.act_space), describe(probe)
        probe.close()
        self.agent: Any = self.spec.agent(*self.spaces, config.agent).to(resolve_device(config.device))
        self.stop: str | None = None
        self.begun = False
        self.continue_published()

    def continue_published(self) -> None:
        """Check that the environment is still the one of what was published, and drop what cannot be read of that."""
        checkpoint.clean(self.logdir)
        try:
            found = checkpoint.newest(self.logdir, lambda path: path)
        except FastwmError:  # the stages have all that it takes to publish again
            found = None
        if found is not None:
            checkpoint.check_spaces(checkpoint.describe(found), *self.spaces, self.config.env)
        checkpoint.set_aside_newer(self.logdir, found)

    def begin(self, folder: Path) -> None:
        """A stage is about to work, with settings that fit what is there: they become the run's."""
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            write_config(self.logdir / "config.yaml", self.name, self.config)
        self.begun = True

    def folder(self, iteration: int) -> Path:
        return self.logdir if iteration == 0 else self.logdir / f"iteration-{iteration}"

    def publish(self, step: int) -> None:
        """Leave the agent where `fastwm.load`, `eval` and `dream` find it."""
        meta = {"agent": self.name}
        for key, space in zip(("obs_space", "act_space"), self.spaces):
            meta[key] = checkpoint.space_to_json(space)
        checkpoint.save(self.logdir, step, self.agent, {}, meta, keep=self.config.keep)

    def run(self) -> None:
        """Every stage that is not finished; a signal ends it after a save."""
        c = self.config
        with Progress(c.log_every) as self.progress, signals(self):
            self.progress.say(f"environment: {c.env}: {self.described}")
            self.progress.say(
                f"{self.name} on {self.agent.device}, {torch.get_num_threads()} threads, in {self.logdir}"
            )
            try:
                for iteration in range(c.agent.iterations):
                    if not self.iterate(iteration):
                        break
            except Stopped:
                self.progress.say(f"{self.stop}: saved; the same command goes on")

    def iterate(self, iteration: int) -> bool:
        """All stages of an iteration, or the chosen one; whether the next iteration may come."""
        folders, chosen = [self.folder(i) for i in range(iteration + 1)], self.config.stage
        names = [kind.name for kind in self.spec.stages]
        for number, kind in enumerate(self.spec.stages):
            base = (iteration * len(names) + number + 1) * 1_000_000
            stage: Any = kind(StageRun(self, folders[-1] / kind.name, base), self.agent, folders)
            if stage.restore():
                self.progress.say(f"stage {kind.name}{f' of iteration {iteration}' if iteration else ''}: finished")
                continue
            if chosen and kind.name != chosen:
                if number < names.index(chosen):
                    raise FastwmError(f"stage {kind.name} is not finished: run it first (--stage {kind.name}, or none)")
                return False
            if self.stop:
                raise Stopped
            self.begin(folders[-1] / kind.name)
            start = time.monotonic()
            stage.work()
            self.progress.say(f"stage {kind.name}: {time.monotonic() - start:.0f} s")
            if chosen:
                return False
        return True


def train_stages(name: str, config: StagedConfig[Any], logdir: Path, env: Any = None) -> StagedTrainer:
    """Start or continue the run in `logdir`; see `fastwm.runner.train.train`."""
    with ranks() as group:
        if group.world > 1:
            raise FastwmError("world_models does not train on several processes yet: start one, without torchrun")
    with run_folder(logdir):
        check_folder(logdir, config.trust)
        trainer = StagedTrainer(name, config, logdir, env)
        trainer.run()
    return trainer
