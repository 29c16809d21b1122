"""Several agents on one environment, each under its preset: their returns against steps and time, and a table."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.agents import agent_name, agent_spec
from fastwm.errors import FastwmError, Interrupted
from fastwm.files import check_folder
from fastwm.runner import plots
from fastwm.runner.config import TrainConfig, default_preset, env_options, preset_blocks, read_config, with_presets
from fastwm.runner.evaluate import evaluate
from fastwm.runner.log import read_lines
from fastwm.runner.plots import plt
from fastwm.runner.train import Trainer, train
from fastwm.writing import write_text

WINDOW = 20
POINTS = 200


@dataclass
class Curve:
    """The moving mean of an agent's episode returns, against environment steps (repeats counted) and seconds."""

    agent: str
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray


def compare(
    env: str, agents: list[str], steps: int, logdir: Path, preset: str = "", seed: int = 0, episodes: int = 20
) -> dict[str, Any]:
    """Train every agent for `steps` environment steps in a folder of its own below `logdir`, or continue it there.

    An agent takes the preset given, or the one named as the environment, or its usual one. Writes
    `compare.png`, `compare.md` and `compare.json` and returns what is in the last.
    """
    agents = [agent_name(agent) for agent in agents]
    if len(set(agents)) < len(agents) or not agents:
        raise FastwmError(f"name every agent once, got {', '.join(agents) or 'none'}")
    for agent in agents:
        if agent_spec(agent).stages:
            raise FastwmError(f"{agent} learns in stages, not step by step; train and evaluate it by itself")
    configs = {agent: agent_config(agent, env, steps, logdir / agent, preset, seed) for agent in agents}
    for agent, config in configs.items():  # what one of them refuses is said before another has trained for hours
        check_folder(logdir / agent, config.trust)
        Trainer(agent, config, logdir / agent).env.close()
    rows, curves = [], []
    for agent, config in configs.items():
        trainer = train(agent, config, logdir / agent)
        if trainer.stop:
            raise Interrupted(f"{trainer.stop} while training {agent}; the same command continues")
        curves.append(read_curve(agent, logdir / agent, config))
        score = evaluate(logdir / agent, episodes, seed=1_000_000, device=config.device)
        rows.append({
            "agent": agent, "preset": " ".join(config.preset), "environment steps": trainer.step * repeat_of(config),
            "updates": trainer.updates, "seconds": round(trainer.seconds, 1),
            "parameters": sum(p.numel() for p in trainer.agent.parameters() if p.requires_grad),
            "return": round(score["mean"], 1), "std": round(score["std"], 1),
        })  # fmt: skip
    result = {
        "env": env, "seed": seed, "episodes": episodes, "agents": rows,
        "curves": {curve.agent: {"steps": curve.steps.tolist(), "seconds": curve.seconds.tolist(),
                                 "returns": curve.returns.tolist()} for curve in curves},
    }  # fmt: skip
    write_text(logdir / "compare.json", json.dumps(result, indent=1))
    write_text(logdir / "compare.md", table(result))
    draw(curves, env, logdir / "compare.png")
    return result


def agent_config(agent: str, env: str, steps: int, folder: Path, preset: str, seed: int) -> TrainConfig[Any]:
    """The settings of one of the runs; those of the folder stand, if it has any."""
    config: TrainConfig[Any] = TrainConfig(agent_spec(agent).config())
    saved = folder / "config.yaml"
    if saved.is_file():
        config = read_config(saved, config, agent)
        if config.env != env:
            raise FastwmError(f"{folder} is a run on {config.env}, not on {env}; use another logdir")
    else:
        names = preset_for(agent, env, preset)
        config = replace(with_presets(config, agent, names), preset=names, env=env, seed=seed)
    return replace(config, steps=max(1, steps // repeat_of(config)), logdir=str(folder))


def preset_for(agent: str, env: str, preset: str) -> tuple[str, ...]:
    blocks = preset_blocks(agent)
    if preset:
        if preset not in blocks:
            raise FastwmError(f"unknown preset {preset!r} for {agent}; there is: {', '.join(blocks)}")
        return (preset,)
    name = env.rpartition(":")[2]
    return (name,) if name in blocks else default_preset(agent)


def repeat_of(config: TrainConfig[Any]) -> int:
    """How often the environment steps every action."""
    return int(env_options(config).get("repeat", 1))


def read_curve(agent: str, folder: Path, config: TrainConfig[Any]) -> Curve:
    """From a run's metrics, thinned out."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "episode/return" in line]
    if not lines:
        return Curve(agent, *np.zeros((3, 0)))
    values = np.array([line["episode/return"] for line in lines])
    window = min(WINDOW, len(values))
    mean = np.convolve(values, np.ones(window) / window, "valid")
    at = np.unique(np.linspace(0, len(mean) - 1, min(POINTS, len(mean))).astype(int))
    lines = lines[window - 1 :]
    steps = np.array([lines[i]["step"] * repeat_of(config) for i in at])
    seconds = np.array([lines[i]["seconds"] for i in at])
    return Curve(agent, steps, seconds, mean[at].round(2))


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    columns = list(result["agents"][0])
    lines = [f"Returns on `{result['env']}`: {result['episodes']} episodes after training, seed {result['seed']}.", "",
             "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]  # fmt: skip
    for row in result["agents"]:
        cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(curves: list[Curve], env: str, path: Path) -> Path:
    """Returns against environment steps, and against time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for curve in curves:
        axes[0].plot(curve.steps, curve.returns, label=curve.agent)
        axes[1].plot(curve.seconds / 60, curve.returns, label=curve.agent)
    axes[0].set(xlabel="environment steps", ylabel=f"return (mean of {WINDOW} episodes)", title=env)
    axes[1].set(xlabel="minutes of training")
    for each in axes:
        each.grid(alpha=0.3)
    axes[0].legend(loc="upper left")
    return plots.save(figure, path)
