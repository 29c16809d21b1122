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
from fastwm.runner.config import TrainConfig, default_preset, preset_blocks, read_config, with_presets
from fastwm.runner.curves import WINDOW, Band, Curve, band, read_curve, repeat_of
from fastwm.runner.evaluate import evaluate
from fastwm.runner.plots import plt
from fastwm.runner.train import Trainer, train
from fastwm.writing import write_text


def compare(
    env: str, agents: list[str], steps: int, logdir: Path, preset: str = "", seed: int = 0, episodes: int = 20,
    seeds: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Train every agent for `steps` environment steps in a folder of its own below `logdir`, or continue it there.

    An agent takes the preset given, or the one named as the environment, or its usual one. With several `seeds`, from
    `seed` on, every agent is trained and scored that often. Writes `compare.png`, `compare.md` and `compare.json`
    and returns what is in the last.
    """
    agents = [agent_name(agent) for agent in agents]
    if len(set(agents)) < len(agents) or not agents:
        raise FastwmError(f"name every agent once, got {', '.join(agents) or 'none'}")
    if seeds < 1:
        raise FastwmError(f"seeds must be at least 1, got {seeds}")
    for agent in agents:
        if agent_spec(agent).stages:
            raise FastwmError(f"{agent} learns in stages, not step by step; train and evaluate it by itself")
    runs = {
        agent: [
            Run(agent, folder, agent_config(agent, env, steps, folder, preset, number))
            for number in range(seed, seed + seeds)
            for folder in [logdir / (agent if number == seed else f"{agent}-seed{number}")]
        ]
        for agent in agents
    }
    for own in runs.values():  # what one of them refuses is said before another has trained for hours
        own[0].check()
    rows, curves = [], dict[str, list[Curve]]()
    for agent, own in runs.items():
        trainers = [run.train() for run in own]
        curves[agent] = [read_curve(agent, run.folder, run.config) for run in own]
        scores = [evaluate(run.folder, episodes, seed=1_000_000, device=run.config.device) for run in own]
        std = scores[0]["std"] if seeds == 1 else float(np.std([score["mean"] for score in scores]))
        rows.append({
            "agent": agent, "preset": " ".join(own[0].config.preset),
            "environment steps": trainers[0].step * repeat_of(own[0].config), "updates": trainers[0].updates,
            "seconds": round(float(np.mean([trainer.seconds for trainer in trainers])), 1),
            "parameters": sum(p.numel() for p in trainers[0].agent.parameters() if p.requires_grad),
            "return": round(float(np.mean([score["mean"] for score in scores])), 1), "std": round(std, 1),
        })  # fmt: skip
    result = {
        "env": env, "seed": seed, "seeds": seeds, "episodes": episodes, "agents": rows,
        "curves": {agent: [{"steps": curve.steps.tolist(), "seconds": curve.seconds.tolist(),
                            "returns": curve.returns.tolist()} for curve in own] for agent, own in curves.items()},
    }  # fmt: skip
    write_text(logdir / "compare.json", json.dumps(result, indent=1))
    write_text(logdir / "compare.md", table(result))
    draw([band(own) for own in curves.values()], env, logdir / "compare.png")
    return result


@dataclass
class Run:
    """One agent, with its settings, in its folder."""

    agent: str
    folder: Path
    config: TrainConfig[Any]

    def check(self) -> None:
        """Raise FastwmError where the run could not start."""
        check_folder(self.folder, self.config.trust)
        Trainer(self.agent, self.config, self.folder).close()

    def train(self) -> Trainer:
        """Start or continue it to its end."""
        trainer = train(self.agent, self.config, self.folder)
        if trainer.stop:
            raise Interrupted(f"{trainer.stop} while training {self.agent}; the same command continues")
        return trainer


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
    return (name,) if name in blocks else default_preset(agent, env)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    columns = list(result["agents"][0])
    over = f"seed {result['seed']}" if result["seeds"] == 1 else f"mean and deviation over {result['seeds']} seeds"
    lines = [f"Returns on `{result['env']}`: {result['episodes']} episodes after training, {over}.", "",
             "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]  # fmt: skip
    for row in result["agents"]:
        cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(bands: list[Band], env: str, path: Path) -> Path:
    """Returns against environment steps, and against time; a band of one deviation where there are several seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for each in bands:
        for axis, x in zip(axes, (each.steps, each.seconds / 60)):
            (line,) = axis.plot(x, each.mean, label=each.agent)
            if each.seeds > 1:
                axis.fill_between(
                    x, each.mean - each.std, each.mean + each.std, color=line.get_color(), alpha=0.2, lw=0
                )
    axes[0].set(xlabel="environment steps", ylabel=f"return (mean of {WINDOW} episodes)", title=env)
    axes[1].set(xlabel="minutes of training")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper left")
    return plots.save(figure, path)
