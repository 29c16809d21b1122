"""Compare settings over seeds: a run for each, then a table of their scores.

    python examples/sweep.py [--steps 3000] [--seeds 2] [--logdir runs/sweep]

Needs `pip install 'fastwm[agents]'`. Every run has a folder of its own, so the same call again goes on where it was,
and several machines that share the folder may call it at once: a run that another process holds is passed over.
"""

import argparse
import itertools
from pathlib import Path

import fastwm
from fastwm.errors import FastwmError

SETTINGS = {"lr": [3e-4, 1e-3], "imag_length": [10, 15]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--logdir", type=Path, default=Path("runs/sweep"))
    options = parser.parse_args()
    table = []
    for values in itertools.product(*SETTINGS.values()):
        agent = dict(zip(SETTINGS, values))
        name = "-".join(f"{key}={value:g}" for key, value in agent.items())
        scores = []
        for seed in range(options.seeds):
            logdir = options.logdir / name / f"seed-{seed}"
            try:
                fastwm.train("dreamer_v3", env="cartpole", preset="cartpole", logdir=logdir, seed=seed,
                             steps=options.steps, agent=agent)  # fmt: skip
                scores.append(fastwm.evaluate(logdir, episodes=8)["mean"])
            except FastwmError as error:
                print(f"{logdir}: {error}")
        table.append((sum(scores) / max(len(scores), 1), name, len(scores)))
    for mean, name, seeds in sorted(table, reverse=True):
        print(f"{mean:8.1f}  {name}  ({seeds} seeds)")


if __name__ == "__main__":
    main()
