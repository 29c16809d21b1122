"""Means of what a finished run logged, over four stretches of it: what a run that learns looks like.

python -m bench.healthy runs/cartpole [--commit 8e10465]

Leaves bench/results/learning/healthy_AGENT.json, which the agent's page shows.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.info import provenance
from fastwm.runner.evaluate import open_run
from fastwm.runner.log import read_lines

CUTS = (0.0, 0.1, 0.4, 0.7, 1.0)  # fractions of the learning steps


def summary(folder: Path) -> dict[str, Any]:
    """Stretches of steps since the first update, and every metric's mean in each."""
    agent, config = open_run(folder)[:2]
    lines = list(read_lines(folder / "metrics.jsonl"))
    learning = [line["step"] for line in lines if line.get("updates")]
    first, last = min(learning), max(learning)
    edges = [round(first + (last - first) * cut) for cut in CUTS]
    stretches = list(itertools.pairwise(edges))
    names = ["episode/return", *sorted({key for line in lines for key in line if key.startswith("train/")})]

    def mean(name: str, low: int, high: int) -> float | None:
        values = [line[name] for line in lines if name in line and low <= line["step"] <= high]
        return float(f"{np.mean(values):.5g}") if values else None

    return {
        "agent": agent, "env": config.env, "preset": " ".join(config.preset), "seed": config.seed,
        "stretches": stretches, "metrics": {name: [mean(name, *each) for each in stretches] for name in names},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--commit", default=provenance("cpu")["commit"], help="of the code that trained; default: this")
    parser.add_argument("--results", type=Path, default=Path("bench/results/learning"))
    options = parser.parse_args()
    result = summary(options.run)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in result.pop("metrics").items())
    head = json.dumps(result | {"commit": options.commit})[:-1]
    target = options.results / f"healthy_{result['agent']}.json"
    target.write_text(f'{head}, "metrics": {{\n{lines}\n}}}}\n')
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
