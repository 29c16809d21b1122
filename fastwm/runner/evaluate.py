"""Use a trained agent: load it, act with it, score it."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastwm.agents import agent_spec
from fastwm.envs import Record, VecEnv, make_env
from fastwm.errors import FastwmError
from fastwm.files import check, check_folder
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots, staged_plots
from fastwm.runner.config import StagedConfig, TrainConfig, env_options, read_config, resolve_device
from fastwm.runner.train import Episodes
from fastwm.runner.trust import check_env
from fastwm.writing import write_text

log = logging.getLogger("fastwm")


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


def open_run(logdir: Path, trust: bool = False) -> Saved:
    """The settings and the newest checkpoint of a run."""
    path = logdir / "config.yaml"
    if not path.is_file():
        raise FastwmError(f"{logdir} is not the folder of a run: it has no config.yaml")
    check_folder(logdir, trust)
    newest = checkpoint.newest(logdir, Path)
    if newest is None:
        raise FastwmError(f"{logdir} has no checkpoint yet")
    meta = checkpoint.describe(newest)
    check(meta, {"agent": str, "obs_space": dict, "act_space": dict}, str(newest / "meta.json"))
    name = meta["agent"]
    spec = agent_spec(name)
    kind = StagedConfig if spec.stages else TrainConfig
    config = read_config(path, kind(spec.config()), name)
    return Saved(name, replace(config, trust=trust), newest, meta)


def load(logdir: str | Path, device: str = "cpu", trust: bool = False) -> Any:
    """The agent of a run, ready to `act`.

    `logdir` is the folder given to `fastwm train`. It may come from a stranger: no code of it runs, and without `trust`
    no link leads out of it. Raises FastwmError where there is no run or no readable checkpoint.
    """
    return open_run(Path(logdir), trust).agent(resolve_device(device))


def evaluate(
    logdir: Path,
    episodes: int,
    seed: int,
    device: str = "auto",
    baselines: bool = True,
    file: str = "eval.json",
    trust: bool = False,
) -> dict[str, Any]:
    """Returns of whole episodes, the same number from each environment so that short ones are not favoured.

    The agent's baselines, where it has any, play as many. Writes `file` into the run's folder, if that can be written
    to, and returns what is in it. With `trust` the folder may name code to import for the environment.
    """
    if episodes < 1:
        raise FastwmError(f"episodes must be at least 1, got {episodes}")
    saved = open_run(logdir, trust)
    config = saved.config
    check_env(logdir / "config.yaml", config)
    agent = saved.agent(resolve_device(device))
    num_envs = next(n for n in range(min(episodes, 20), 0, -1) if episodes % n == 0)
    torch.manual_seed(seed)
    env = make_env(config.env, num_envs, seed, **env_options(config))
    state: Any = None

    def act(record: Record) -> Any:
        nonlocal state
        action, state = agent.act(record, state, mode="eval")
        return action

    result = {"env": config.env, "episodes": episodes, "seed": seed} | play(env, act, episodes)
    if baselines:
        policies = agent.baselines(num_envs, seed)
        result["baselines"] = {name: play(env, policy, episodes) for name, policy in policies.items()}
    env.close()
    try:
        write_text(logdir / file, json.dumps(result, indent=1))
        print(f"wrote {logdir / file}")
    except FastwmError as error:  # the score is worth having all the same
        log.warning("%s", error)
    return result


def play(env: VecEnv, act: Callable[[Record], Any], episodes: int) -> dict[str, Any]:
    """Mean, standard deviation, standard error and all returns of `episodes` episodes, as many in each environment."""
    running, returns = Episodes(env.num_envs), [[] for _ in range(env.num_envs)]  # type: tuple[Episodes, list[list[float]]]
    record, each = env.reset(), episodes // env.num_envs
    while any(len(own) < each for own in returns):
        record = env.step(act(record))
        running.add(record)
        for i in np.flatnonzero(record["is_last"]):
            returns[i].append(float(running.total[i]))
    scores = [score for own in returns for score in own[:each]]
    std = float(np.std(scores))
    return {"mean": float(np.mean(scores)), "std": std, "stderr": std / len(scores) ** 0.5, "min": min(scores),
            "max": max(scores), "returns": scores}  # fmt: skip


def dream(logdir: Path, seed: int, trust: bool = False) -> list[Path]:
    """Redraw what the model imagines: of a replayed window, or, for World Models, of an episode played now."""
    saved = open_run(logdir, trust)
    config = saved.config
    agent = saved.agent(torch.device("cpu"))
    torch.manual_seed(seed)
    if agent_spec(saved.name).stages:
        check_env(logdir / "config.yaml", config)
        return staged_plots.write_all(logdir, agent, config, seed)
    replay = Replay(config.replay_capacity, config.num_envs, config.batch_length + 1, latent_keys=agent.latent_keys)
    replay.load(saved.path, logdir / "replay", checkpoint.read_state(saved.path)["more"])
    replay.reseed(seed)
    if not len(replay):
        raise FastwmError(f"{logdir}: replay holds no window of {config.batch_length + 1} rows yet")
    path = plots.imagination(logdir / "plots" / "imagination.png", agent, replay)
    if path is None:
        raise FastwmError(f"{logdir}: there is no image and no continuous observation to draw")
    return [path]
