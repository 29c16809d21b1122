"""Use a trained agent: load it, act with it, score it."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastwm.agents import agent_name, agent_spec
from fastwm.envs import Record, VecEnv, WrongNumber, make_env
from fastwm.errors import FastwmError
from fastwm.files import check, check_folder
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots, staged_plots, video
from fastwm.runner.config import (
    StagedConfig,
    TrainConfig,
    env_options,
    env_source,
    read_config,
    resolve_device,
)
from fastwm.runner.episodes import Episodes
from fastwm.runner.log import Progress
from fastwm.runner.pretrained import is_pretrained, locate
from fastwm.runner.shard import saved_replay
from fastwm.runner.trust import check_env
from fastwm.writing import write_text

log = logging.getLogger("fastwm")

BEST = "best"
"""Folder in a run's, with the best checkpoint by evaluation while training."""
FPS_DREAM = 5  # slow enough to see each frame
MAX_STEPS = 100_000
"""Steps after which the evaluation cuts an episode off."""


class Saved(NamedTuple):
    """A run's folder as it was found: nothing in it is believed that was not checked."""

    name: str
    config: Any
    path: Path  # of the newest whole checkpoint
    meta: dict[str, Any]

    def agent(self, device: torch.device) -> Any:
        spaces = [checkpoint.space_from_json(self.meta[key]) for key in ("obs_space", "act_space")]
        build = partial(agent_spec(self.name).agent, *spaces, self.config.agent)
        checkpoint.check_fits(self.path, build)
        agent = build().to(device)
        checkpoint.load_agent(self.path, agent)
        return agent.eval()


def open_run(logdir: Path, trust: bool = False, best: bool = False) -> Saved:
    """The settings and the newest checkpoint of a run, or the best one by `eval_every`."""
    path = logdir / "config.yaml"
    if not path.is_file():
        raise FastwmError(f"{logdir} is not the folder of a run: it has no config.yaml")
    check_folder(logdir, trust)
    newest = checkpoint.newest(logdir / BEST if best else logdir, Path)
    if newest is None:
        raise FastwmError(f"{logdir} has no {'best checkpoint: train with --eval-every' if best else 'checkpoint yet'}")
    meta = checkpoint.describe(newest)
    check(meta, {"agent": str, "obs_space": dict, "act_space": dict}, str(newest / "meta.json"))
    name = agent_name(meta["agent"])
    spec = agent_spec(name)
    kind = StagedConfig if spec.stages else TrainConfig
    config = read_config(path, kind(spec.config()), name)
    return Saved(name, replace(config, trust=trust), newest, meta)


def load(logdir: str | Path, device: str = "cpu", trust: bool = False, best: bool = False) -> Any:
    """The agent of a run, ready to `act`.

    `logdir` is the folder given to `fastwm train`, or `pretrained:NAME`. It may come from a stranger: no code of it
    runs, and without `trust` no link leads out of it. With `best` it is the checkpoint that `eval_every` found best,
    else the newest. Raises FastwmError where there is no run or no readable checkpoint.
    """
    return open_run(locate(logdir), trust, best).agent(resolve_device(device))


def evaluate(
    logdir: str | Path,
    episodes: int = 20,
    seed: int = 1_000_000,
    device: str = "auto",
    baselines: bool = True,
    file: str = "eval.json",
    trust: bool = False,
    max_steps: int = MAX_STEPS,
    env: Any = None,
    best: bool = False,
) -> dict[str, Any]:
    """Returns of whole episodes, the same number from each environment so that short ones are not favoured.

    An episode that does not end is cut after `max_steps`, counts as it is, and is counted in `cut`. The agent's
    baselines, where it has any, play as many. Writes `file` into the run's folder, if that can be written to, and
    returns what is in it. `env`, an object that `make_env` takes, replaces the name in the run's folder. With
    `trust` the folder may name code to import for the environment. `best` is that of `load`.
    """
    logdir = locate(logdir)
    if episodes < 1 or max_steps < 1:
        raise FastwmError(f"episodes and max_steps must be at least 1, got {episodes} and {max_steps}")
    saved = open_run(logdir, trust, best)
    config = saved.config
    check_env(logdir / "config.yaml", config, "" if env is None else config.env)
    agent = saved.agent(resolve_device(device))
    torch.manual_seed(seed)
    env = make_envs(config, episodes, seed, env)
    each = math.ceil(episodes / env.num_envs)
    try:
        checkpoint.check_spaces(saved.meta, env.obs_space, env.act_space, config.env)
        with Progress(config.log_every) as progress:
            result: dict[str, Any] = {"env": config.env, "episodes": each * env.num_envs, "seed": seed}
            result |= play(env, policy_of(agent), each, max_steps, partial(tell, progress, saved.name))
            if baselines:
                policies = agent.baselines(env.num_envs, seed)
                result["baselines"] = {
                    name: play(env, policy, each, max_steps, partial(tell, progress, name))
                    for name, policy in policies.items()
                }
    finally:
        env.close()
    if is_pretrained(logdir):
        return result
    try:
        write_text(logdir / file, json.dumps(result, indent=1, allow_nan=False))
        print(f"wrote {logdir / file}")
    except FastwmError as error:  # the score is worth having all the same
        log.warning("%s", error)
    return result


def film(
    logdir: Path, seed: int = 1_000_000, device: str = "auto", trust: bool = False, best: bool = False
) -> tuple[list[Path], float]:
    """One episode of a trained agent as a GIF and an mp4 in the run's folder; returns their paths and its return."""
    saved = open_run(own_folder(logdir), trust, best)
    check_env(logdir / "config.yaml", saved.config)
    agent = saved.agent(resolve_device(device))
    torch.manual_seed(seed)
    frames, total = video.episode(saved.config, policy_of(agent), seed)
    return video.write_video(logdir / "videos" / "episode", frames), total


def policy_of(agent: Any) -> Callable[[Any], Any]:
    """Records to actions, for evaluation; the agent's state is carried from one to the next."""
    state: Any = None

    def act(record: Any) -> Any:
        nonlocal state
        action, state = agent.act(record, state, mode="eval")
        return action

    return act


def make_envs(config: Any, episodes: int, seed: int, env: Any = None) -> VecEnv:
    """Up to 20 environments that share the episodes evenly, or as many as the run's vector environment always has."""
    source, num_envs = env_source(config, env), next(n for n in range(min(episodes, 20), 0, -1) if episodes % n == 0)
    try:
        return make_env(source, num_envs, seed, **env_options(config))
    except WrongNumber as error:
        return make_env(source, error.made, seed, **env_options(config))


def play(
    env: VecEnv, act: Callable[[Record], Any], each: int, max_steps: int, show: Callable[[int, int, int], None]
) -> dict[str, Any]:
    """Mean, standard deviation, standard error and all returns of `each` episodes of every environment.

    `show` is told the steps taken, the episodes that have ended and their number in all.
    """
    running, steps, cut = Episodes(env.num_envs), 0, 0
    returns: list[list[float]] = [[] for _ in range(env.num_envs)]
    record = env.reset()
    while any(len(own) < each for own in returns):
        record, steps = env.step(act(record)), steps + 1
        running.add(record)
        too_long = (running.length >= max_steps) & ~record["is_last"]
        for i in np.flatnonzero(record["is_last"] | too_long):
            cut += bool(too_long[i]) and len(returns[i]) < each
            returns[i].append(float(running.total[i]))
        running.total[too_long] = running.length[too_long] = 0
        show(steps, sum(min(len(own), each) for own in returns), each * env.num_envs)
    scores = [score for own in returns for score in own[:each]]
    std = float(np.std(scores))
    return {"mean": float(np.mean(scores)), "std": std, "stderr": std / len(scores) ** 0.5, "min": min(scores),
            "max": max(scores), "cut": cut, "returns": scores}  # fmt: skip


def tell(progress: Progress, who: str, steps: int, ended: int, episodes: int) -> None:
    progress.show(f"{who}: {ended} of {episodes} episodes, {steps:,} steps")


def own_folder(logdir: Path) -> Path:
    """`logdir`, which pictures may be written to."""
    if is_pretrained(logdir):
        raise FastwmError(f"pretrained:{logdir.name} is for fastwm view, eval and load: nothing is written beside it")
    return logdir


def dream(logdir: Path, seed: int, trust: bool = False, film: bool = False) -> list[Path]:
    """Redraw what the model imagines: of a replayed window, or, for World Models, of an episode played now.

    With `film`, an agent that sees images also gets a video: truth, prediction and error below each other.
    """
    saved = open_run(own_folder(logdir), trust)
    config = saved.config
    agent = saved.agent(torch.device("cpu"))
    torch.manual_seed(seed)
    if agent_spec(saved.name).stages:
        check_env(logdir / "config.yaml", config)
        return staged_plots.write_all(logdir, agent, config, seed)
    replay = saved_replay(saved.path, logdir, config, agent)
    if replay is None or not len(replay):
        raise FastwmError(f"{logdir}: replay holds no window of {config.batch_length + 1} rows yet")
    replay.reseed(seed)
    path = plots.imagination(logdir / "plots" / "imagination.png", agent, replay)
    if path is None:
        raise FastwmError(f"{logdir}: there is no image and no continuous observation to draw")
    if not film:
        return [path]
    try:
        return [path, *film_dream(logdir / "videos" / "dream", agent, replay)]
    except ValueError as error:
        raise FastwmError(f"{logdir}: {error}") from error


def film_dream(path: Path, agent: Any, replay: Replay) -> list[Path]:
    """Truth, prediction and error of a replayed window, as `<path>-<image>` GIF and mp4.

    Raises:
        ValueError: for an agent that sees no image.
    """
    batch = plots.replayed_window(agent, replay)
    videos = agent.imagine_video(batch, min(plots.CONTEXT, len(batch["reward"]) - 2))
    pictures = [video.write_video(path.with_name(f"{path.name}-{key}"), frames[:, 0].cpu().numpy(), FPS_DREAM)
                for key, frames in videos.items()]  # fmt: skip
    return [each for paths in pictures for each in paths]
