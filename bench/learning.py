"""Gathers finished, evaluated runs: their curves as one small JSON a task, and all tasks in one picture.

python -m bench.learning runs/*/ --note "one thread of a machine in use: seconds are upper bounds"

A run's folder comes from `fastwm train` and then `fastwm eval`.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.errors import FastwmError
from fastwm.info import device_name
from fastwm.runner.curves import WINDOW, read_curve, repeat_of
from fastwm.runner.evaluate import open_run
from fastwm.runner.log import read_lines
from fastwm.runner.plots import plt, save


def read_run(folder: Path) -> dict[str, Any]:
    """What a run learned and how its agent then scored; environment steps count repeated actions."""
    agent, config = open_run(folder)[:2]
    curve, last = read_curve(agent, folder, config), read_lines(folder / "metrics.jsonl")[-1]
    score = json.loads((folder / "eval.json").read_text())
    return {
        "env": config.env, "agent": agent, "preset": " ".join(config.preset), "seed": config.seed,
        "steps": config.steps, "environment_steps": config.steps * repeat_of(config), "seconds": last["seconds"],
        "evaluation": {key: score[key] for key in ("mean", "std", "min", "max", "episodes")},
        "curve": {key: getattr(curve, key).tolist() for key in ("steps", "seconds", "returns")},
    }  # fmt: skip


def draw(tasks: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Per agent the mean of its seeds and their range."""
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4), layout="constrained", squeeze=False)
    for panel, (env, runs) in zip(axes[0], tasks.items()):
        agents = defaultdict(list)
        for run in runs:
            agents[run["agent"]].append(run["curve"])
        for agent, curves in sorted(agents.items()):
            grid = np.linspace(max(c["steps"][0] for c in curves), min(c["steps"][-1] for c in curves), 200)
            returns = np.stack([np.interp(grid, c["steps"], c["returns"]) for c in curves])
            (line,) = panel.plot(grid, returns.mean(0), label=f"{agent}, {len(curves)} seed{'s' * (len(curves) > 1)}")
            panel.fill_between(grid, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.2, lw=0)
        panel.set(xlabel="environment steps", ylabel=f"return (mean of {WINDOW} episodes)", title=env)
        panel.grid(alpha=0.3)
        panel.legend()
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--note", default="", help="under what conditions it was measured; goes into the JSON")
    parser.add_argument("--results", type=Path, default=Path("bench/results/learning"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/learning.png"))
    options = parser.parse_args()
    try:
        runs = sorted(map(read_run, options.runs), key=lambda run: (run["env"], run["agent"], run["seed"]))
    except (FastwmError, FileNotFoundError) as error:
        parser.error(f"{error}; name folders of runs that were trained and evaluated")
    tasks = defaultdict(list)
    for run in runs:
        tasks[run.pop("env")].append(run)
    options.results.mkdir(parents=True, exist_ok=True)
    for env, runs in tasks.items():
        lines = ",\n".join(map(json.dumps, runs))
        head = json.dumps({"env": env, "cpu": device_name(), "note": options.note})[:-1]
        name = env.rpartition(":")[2]
        (options.results / f"{name}.json").write_text(f'{head}, "runs": [\n{lines}\n]}}\n')
        for run in runs:
            score = run["evaluation"]
            print(f"{name:20} {run['agent']:12} seed {run['seed']}  {score['mean']:6.1f} +- {score['std']:5.1f}  "
                  f"{run['steps']:,} steps  {run['seconds']:.0f} s")  # fmt: skip
    print(f"wrote {draw(tasks, options.picture)}")


if __name__ == "__main__":
    main()
