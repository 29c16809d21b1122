"""Kill runs of all five agents at random moments, many in the middle of a save, and look for what was lost.

    python -m tests.kills --kills 200 --seed 0

Every run goes on in the folder of the one killed before it. The parent imports everything once and forks, so that a
start takes a fraction of a second.
"""

import argparse
import contextlib
import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import fastwm
from fastwm.agents import AGENTS, agent_spec
from fastwm.cli import main
from fastwm.envs import VecEnv
from fastwm.envs.gym import make_from
from fastwm.envs.registry import register
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots
from fastwm.runner.config import TrainConfig, read_config
from fastwm.runner.folder import LOCK, acquire
from fastwm.runner.log import read_lines
from fastwm.writing import TEMPORARY
from tests.agents_under_test import TINY
from tests.fake_tasks import cover

LENGTH = 11  # steps of an episode
STAGES = [
    "--preset", "takecover_quick", "--agent.latents", "4", "--agent.iterations", "1", "--agent.precision", "fp32",
    "--agent.collect.episodes", "12", "--agent.collect.chunk-episodes", "2", "--agent.collect.min-frames", "1",
    "--agent.collect.num-envs", "2", "--agent.v.steps", "30", "--agent.v.batch", "2", "--agent.m.hidden", "8",
    "--agent.m.steps", "60", "--agent.m.batch", "2", "--agent.m.length", "6", "--agent.c.population", "4",
    "--agent.c.rollouts", "2", "--agent.c.generations", "60", "--agent.c.minutes", "0",
    "--agent.c.evaluate-every", "20", "--agent.c.evaluate-rollouts", "3", "--agent.c.max-steps", "12",
]  # fmt: skip
STEPS = [
    "--preset", "small", "--prefill", "0", "--num-envs", "2", "--batch-size", "2", "--batch-length", "5",
    "--train-ratio", "1", "--replay-capacity", "1600",
]  # fmt: skip


class Count(gymnasium.Env):
    """Shows which episode this is and how many steps it has had."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    episode = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.obs(), {}

    def obs(self) -> np.ndarray:
        return np.array([self.episode, self.t], np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self.obs(), 1.0, self.t == LENGTH, False, {}


def make(name: str, **options: Any) -> VecEnv:
    return make_from({"count": Count, "cover": cover}[name], **options)


register("kills", make)  # a run's own folder may name it


def command(name: str, logdir: Path, *more: str) -> list[str]:
    """A run of that agent that saves many times a second."""
    if agent_spec(name).stages:
        own = ["--env", "kills:cover", *STAGES]
    else:
        own = ["--env", "kills:count", *STEPS]
        own += [word for key, value in TINY[name].items() for word in (f"--agent.{key.replace('_', '-')}", str(value))]
    frequent = ["--save-every", "0.02", "--log-every", "0.02", "--threads", "1"]
    return ["train", name, *own, *frequent, "--logdir", str(logdir), *more]


@contextlib.contextmanager
def forked(work: Callable[[], int], output: Path) -> Iterator[int]:
    """The number of a process that does the work; its status is its result."""
    child = os.fork()
    if not child:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0)), io.TextIOWrapper(os.fdopen(2, "wb", 0))
        status = 99
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def exited(child: int) -> int | None:
    """Its status, if it has ended."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def saving(logdir: Path) -> bool:
    try:
        return next(logdir.rglob(f"{TEMPORARY}*"), None) is not None
    except FileNotFoundError:  # a folder went while it was looked through
        return True


def kill_once(name: str, logdir: Path, rng: random.Random, longest: float) -> bool:
    """Start or continue the run and kill it; whether it was not finished before."""
    output = logdir.with_suffix(".log")
    in_a_save, moment = rng.random() < 0.6, rng.uniform(0.05, longest)
    with forked(lambda: main(command(name, logdir, *(["--steps", "1000000"] * bool(name in TINY)))), output) as child:
        start, status = time.monotonic(), None
        while status is None and (time.monotonic() - start < moment or (in_a_save and not saving(logdir))):
            status = exited(child)
            time.sleep(0.0005)
        if status is None:
            time.sleep(rng.uniform(0, 0.01) if in_a_save else 0)
            os.kill(child, signal.SIGKILL)
            _, ended = os.waitpid(child, 0)
            status = os.waitstatus_to_exitcode(ended)
    assert status in (0, -signal.SIGKILL), f"{name}: exit status {status}\n{output.read_text()}"
    return status != 0


class Watch:
    """What a run had saved, and must have ever after."""

    def __init__(self, name: str, logdir: Path):
        self.name, self.logdir = name, logdir
        self.steps: dict[str, int] = {}
        self.chunks = 0

    def look(self) -> None:
        """After a kill: every newest checkpoint is whole and none went back; nothing has to be repaired for that."""
        if not self.logdir.is_dir():
            return
        os.close(acquire(self.logdir))  # a kill has released the lock
        for folder in sorted(self.logdir.rglob("checkpoints")):
            # A kill between two renames leaves the replaced one under its other name: the next start puts it right.
            checkpoint.clean(folder.parent)
            found = checkpoint.checkpoints(folder.parent)
            assert found or str(folder) not in self.steps, f"{folder}: all checkpoints are gone"
            if found:
                checkpoint.read_meta(found[0])
                step = int(found[0].name)
                assert step >= self.steps.get(str(folder), 0), f"{folder} went back to step {step}"
                self.steps[str(folder)] = step
        chunks = list(self.logdir.glob("collect/chunk-*"))
        assert len(chunks) >= self.chunks, "collected episodes are gone"
        self.chunks = len(chunks)
        for chunk in chunks:
            rows = np.load(chunk / "rows.npz")["reward"]
            assert len(np.load(chunk / "image.npy", mmap_mode="r")) == len(rows)

    def finish(self) -> None:
        """The same command ends in order, and nothing is left over, torn, or told twice."""
        steps = max(self.steps.values(), default=0) + 40
        with forked(
            lambda: main(command(self.name, self.logdir, *(["--steps", str(steps)] * bool(self.name in TINY)))),
            self.logdir.with_suffix(".log"),
        ) as child:
            _, status = os.waitpid(child, 0)
        assert status == 0, self.logdir.with_suffix(".log").read_text()
        self.look()
        os.unlink(self.logdir / LOCK)
        left = [str(p) for prefix in (TEMPORARY, checkpoint.REPLACED) for p in self.logdir.rglob(f"{prefix}*")]
        assert not left, left
        for metrics in self.logdir.rglob("metrics.jsonl"):
            text, lines = metrics.read_text(), read_lines(metrics)
            told = [line["step"] for line in lines]
            assert len(lines) == len(text.splitlines()) and told == sorted(told), metrics
        fastwm.load(self.logdir)
        if self.name in TINY:
            self.check_replay(steps)

    def check_replay(self, steps: int) -> None:
        """Every row that was told to be there is, in order: an episode goes on or a new one begins."""
        path = checkpoint.checkpoints(self.logdir)[0]
        config: Any = TrainConfig(agent_spec(self.name).config())
        config = read_config(self.logdir / "config.yaml", config, self.name)
        replay = Replay(config.replay_capacity, 2, config.batch_length + 1)
        replay.load(path, self.logdir / "replay", checkpoint.read_state(path)["more"])
        assert replay.added * 2 == int(path.name) == steps
        rows = torch.arange(replay.oldest, replay.added) % replay.rows
        obs, is_first = replay._data["obs"][rows], replay._data["is_first"][rows]
        episode, t = obs.unbind(-1)
        follows = (episode[1:] == episode[:-1]) & (t[1:] == t[:-1] + 1)
        assert (follows | (is_first[1:] & (t[1:] == 0))).all()


def warm_up() -> None:
    """Do once, and before any fork, what every run would spend most of its time on."""
    importlib.import_module("tyro")
    figure, _ = plots.plt.subplots(layout="constrained")
    figure.savefig(io.BytesIO())
    plots.plt.close(figure)


def attack(name: str, base: Path, kills: int, rng: random.Random, longest: float = 1.5) -> int:
    """Kill runs of an agent so many times; how many folders were needed, for a run may finish before."""
    folders = 0
    while kills:
        folders += 1
        logdir = base / f"{name}-{folders}"
        watch = Watch(name, logdir)
        while kills and kill_once(name, logdir, rng, longest):
            kills -= 1
            watch.look()
        watch.finish()
        shutil.rmtree(logdir)
    return folders


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    rng, start = random.Random(options.seed), time.monotonic()
    for number, agent in enumerate(AGENTS):
        share = options.kills // len(AGENTS) + (number < options.kills % len(AGENTS))
        with tempfile.TemporaryDirectory() as base:
            runs = attack(agent, Path(base), share, rng)
        print(f"{agent}: {share} kills, {runs} runs, nothing lost ({time.monotonic() - start:.0f} s)", flush=True)
