"""Use a trained agent: load it, act with it, score it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastwm.agents import agent_spec
from fastwm.envs import Record, VecEnv, make_env
from fastwm.errors import FastwmError
from fastwm.replay import Replay
from fastwm.runner import checkpoint, plots, staged_plots
from fastwm.runner.config import StagedConfig, TrainConfig, env_options, read_config, resolve_device
from fastwm.runner.train import Episodes
from fastwm.writing import write_text


def run_config(logdir: Path) -> tuple[str, Any]:
    """The agent's name and the settings of a run."""
    path = logdir / "config.yaml"
    if not path.is_file():
        raise FastwmError(f"{logdir} is not the folder of a run: it has no config.yaml")
    meta = checkpoint.newest(logdir, checkpoint.read_meta)
    if meta is None:
        raise FastwmError(f"{logdir} has no checkpoint yet")
    name = str(meta["agent"])
    spec = agent_spec(name)
    kind = StagedConfig if spec.stages else TrainConfig
    return name, read_config(path, kind(spec.config()), name)


def load(logdir: str | Path, device: str = "cpu") -> Any:
    """The agent of a run, ready to `act`.

    `logdir` is the folder given to `fastwm train`. Raises FastwmError where there is no run or no readable checkpoint.
    """
    logdir = Path(logdir)
    name, config = run_config(logdir)

    def load_from(path: Path) -> Any:
        meta = checkpoint.read_meta(path)
        obs_space, act_space = (checkpoint.space_from_json(meta[key]) for key in ("obs_space", "act_space"))
        build = partial(agent_spec(name).agent, obs_space, act_space, config.agent)
        checkpoint.check_fits(path, build)
        agent = build().to(resolve_device(device))
        checkpoint.load_agent(path, agent)
        return agent.eval()

    return checkpoint.newest(logdir, load_from)


def evaluate(
    logdir: Path,
    episodes: int,
    seed: int,
    device: str = "auto",
    baselines: bool = True,
    file: str = "eval.json",
) -> dict[str, Any]:
    """Returns of whole episodes, the same number from each environment so that short ones are not favoured.

    The agent's baselines, where it has any, play as many. Writes `file` into the run's folder and returns what is
    in it.
    """
    if episodes < 1:
        raise FastwmError(f"episodes must be at least 1, got {episodes}")
    _, config = run_config(logdir)
    agent = load(logdir, str(resolve_device(device)))
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
    write_text(logdir / file, json.dumps(result, indent=1))
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


def dream(logdir: Path, seed: int) -> list[Path]:
    """Redraw what the model imagines: of a replayed window, or, for World Models, of an episode played now."""
    name, config = run_config(logdir)
    agent = load(logdir)
    torch.manual_seed(seed)
    if agent_spec(name).stages:
        return staged_plots.write_all(logdir, agent, config, seed)

    def read_replay(path: Path) -> Replay:
        state = checkpoint.read_state(path)
        replay = Replay(config.replay_capacity, config.num_envs, config.batch_length + 1, latent_keys=agent.latent_keys)
        replay.load(path, logdir / "replay", state["more"])
        replay.reseed(seed)
        return replay

    replay = checkpoint.newest(logdir, read_replay)
    if not len(replay):
        raise FastwmError(f"{logdir}: replay holds no window of {config.batch_length + 1} rows yet")
    path = plots.imagination(logdir / "plots" / "imagination.png", agent, replay)
    if path is None:
        raise FastwmError(f"{logdir}: there is no image and no continuous observation to draw")
    return [path]
