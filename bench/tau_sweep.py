"""The paper's table of temperatures: `python bench/tau_sweep.py LOGDIR [--evolve]`.

For each temperature: the controller's return in the dream ("virtual") and in the environment ("actual"). Without
`--evolve` the run's own controller is scored at all temperatures, and its actual score is one number. With it, a
controller is evolved at each temperature, in LOGDIR/tau-<temperature>, over the run's V and M: as in the paper, at
the price of stage C each time.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import fastwm
from fastwm.agents.world_models.fitness import Dream, first_latents
from fastwm.runner.evaluate import evaluate, open_run
from fastwm.runner.stages import train_stages

TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)


def virtual(logdir: Path, source: Path, temperature: float, episodes: int, seed: int) -> dict[str, float]:
    """Returns in the dream of the controller in `logdir`, begun from the first frames in `source`."""
    agent = fastwm.load(logdir)
    dream = Dream(agent, *first_latents([source / "encode"], seed), temperature, agent.config.c.max_steps)
    returns = dream(agent.controller.vector()[None], torch.arange(episodes)[None], seed).returns.double()
    return {"mean": float(returns.mean()), "std": float(returns.std()), "stderr": float(returns.std()) / episodes**0.5}


def evolved(source: Path, temperature: float, config: Any) -> Path:
    """A run that shares all stages with `source` but C, evolved at this temperature."""
    logdir = source / f"tau-{temperature:g}"
    logdir.mkdir(exist_ok=True)
    for stage in ("collect", "v", "encode", "m"):
        if not (logdir / stage).exists():
            (logdir / stage).symlink_to((source / stage).resolve(), target_is_directory=True)
    config.agent.c.temperature, config.agent.c.fitness, config.stage = temperature, "dream", "c"
    config.agent.iterations, config.logdir = 1, str(logdir)
    train_stages("world_models", config, logdir)
    return logdir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path)
    parser.add_argument("--evolve", action="store_true", help="evolve a controller at each temperature")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--dreams", type=int, default=1024)
    parser.add_argument("--episodes", type=int, default=100, help="real ones")
    parser.add_argument("--seed", type=int, default=1_000_000)
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    actual: dict[str, Any] | None = None
    for temperature in options.temperatures:
        logdir = options.logdir
        if options.evolve:
            logdir = evolved(options.logdir, temperature, open_run(options.logdir).config)
        if actual is None or options.evolve:
            actual = evaluate(logdir, options.episodes, options.seed, baselines=False, file="eval_tau.json")
        row = {
            "tau": temperature,
            "virtual": virtual(logdir, options.logdir, temperature, options.dreams, options.seed),
        }
        row["actual"] = {key: actual[key] for key in ("mean", "std", "stderr")}
        table.append(row)
        print(format_row(row), flush=True)
    (options.logdir / "tau_sweep.json").write_text(json.dumps({"evolved": options.evolve, "rows": table}, indent=1))
    print("\n| tau | virtual | actual |\n|---|---|---|")
    for row in table:
        print(format_row(row))


def format_row(row: dict[str, Any]) -> str:
    scores = [row["virtual"], row["actual"]]
    cells = [f"{score['mean']:.0f} +- {score['std']:.0f} (se {score['stderr']:.0f})" for score in scores]
    return f"| {row['tau']:.2f} | {cells[0]} | {cells[1]} |"


if __name__ == "__main__":
    main()
