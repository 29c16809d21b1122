"""Looking at a run while it trains: evaluations, the best checkpoint by them, and films."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastwm.errors import FastwmError
from fastwm.nn.spaces import is_image
from fastwm.runner import checkpoint, video
from fastwm.runner.evaluate import BEST, film_dream, make_envs, play, policy_of

if TYPE_CHECKING:
    from fastwm.runner.train import Trainer

SEED = 1_000_000
MAX_STEPS = 100_000  # of an evaluation's episode


class Stopped(Exception):
    """The run is to end: no time for a whole evaluation."""


class Watch:
    """Evaluate and film as often as the settings say, without a trace in the training: no draw of it is taken."""

    def __init__(self, trainer: Trainer, env: Any = None):
        self.env = env
        self.done = {what: self.turn(trainer, what) for what in ("eval", "video")}

    def turn(self, trainer: Trainer, what: str) -> int:
        """How often something has been due by now."""
        every = getattr(trainer.config, f"{what}_every")
        return trainer.step // every if every else 0

    def __call__(self, trainer: Trainer) -> None:
        for what, look in (("eval", self.evaluate), ("video", self.film)):
            turn = self.turn(trainer, what)
            if turn > self.done[what] and trainer.updates:
                with draws_of_its_own(SEED + turn):
                    look(trainer)
            self.done[what] = turn

    def evaluate(self, trainer: Trainer) -> None:
        config = trainer.config

        def show(steps: int, ended: int, episodes: int) -> None:
            if trainer.stop:
                raise Stopped
            trainer.progress.show(f"evaluation: {ended} of {episodes} episodes, {steps:,} steps")

        env = make_envs(config, config.eval_episodes, SEED, self.env)
        try:
            each = math.ceil(config.eval_episodes / env.num_envs)
            score = play(env, policy_of(trainer.agent), each, MAX_STEPS, show)["mean"]
        except Stopped:
            return
        finally:
            env.close()
        best = best_score(trainer.logdir)
        trainer.log.write(trainer.step, {"eval/return": score, "eval/best": max(score, best)})
        trainer.progress.say(f"step {trainer.step:,}: evaluation: mean return {score:.1f}"
                             + (", the best so far" if score > best else f" (best {best:.1f})"))  # fmt: skip
        if score > best:
            checkpoint.save(trainer.logdir / BEST, trainer.step, trainer.agent, {}, trainer.meta() | {"score": score},
                            keep=1)  # fmt: skip

    def film(self, trainer: Trainer) -> None:
        folder, step = trainer.logdir / "videos", trainer.step
        paths: dict[str, Path] = {}
        try:
            frames, _ = video.episode(trainer.config, policy_of(trainer.agent), SEED, self.env)
            paths["episode"] = video.write_video(folder / f"episode-{step:012d}", frames)[0]
        except FastwmError as error:
            trainer.progress.say(f"step {step:,}: no film of an episode: {error}")
        if len(trainer.replay) and any(map(is_image, trainer.obs_space.values())):
            with trainer.replay.unchanged():
                paths["dream"] = film_dream(folder / f"dream-{step:012d}", trainer.agent, trainer.replay)[0]
        for name, path in paths.items():
            trainer.log.picture(step, f"video/{name}", path)


def best_score(logdir: Path) -> float:
    """The score of the best checkpoint; minus infinity where there is none."""
    found = checkpoint.newest(logdir / BEST, checkpoint.describe)
    return float(found.get("score", -math.inf)) if found else -math.inf


@contextmanager
def draws_of_its_own(seed: int) -> Iterator[None]:
    """Draws from torch's and NumPy's generators inside change nothing outside."""
    state, numpy_state = checkpoint.rng_state(), np.random.get_state()  # noqa: NPY002
    try:
        torch.manual_seed(seed)
        yield
    finally:
        checkpoint.set_rng_state(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
