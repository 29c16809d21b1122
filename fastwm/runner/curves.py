"""Learning curves: one run's, several seeds' together, and the published ones."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fastwm.runner.config import TrainConfig, env_options
from fastwm.runner.log import read_lines

WINDOW = 20
POINTS = 200


@dataclass
class Curve:
    """The moving mean of an agent's episode returns, against environment steps (repeats counted) and seconds."""

    agent: str
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray


@dataclass
class Band:
    """Mean and standard deviation of returns over seeds, against environment steps and seconds."""

    agent: str
    seeds: int
    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    seconds: np.ndarray


def repeat_of(config: TrainConfig[Any]) -> int:
    """How often the environment steps every action."""
    return int(env_options(config).get("repeat", 1))


def episodes(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, seconds and returns of the training episodes of a run that have ended, in order."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "episode/return" in line]
    columns = ([line[key] for line in lines] for key in ("step", "seconds", "episode/return"))
    steps, seconds, returns = map(np.array, columns)
    return steps, seconds, returns


def read_curve(agent: str, folder: Path, config: TrainConfig[Any]) -> Curve:
    """From a run's metrics, thinned out."""
    steps, seconds, returns = episodes(folder)
    if not len(returns):
        return Curve(agent, *np.zeros((3, 0)))
    window = min(WINDOW, len(returns))
    mean = np.convolve(returns, np.ones(window) / window, "valid")
    at = np.unique(np.linspace(0, len(mean) - 1, min(POINTS, len(mean))).astype(int))
    steps, seconds = steps[window - 1 :], seconds[window - 1 :]
    return Curve(agent, steps[at] * repeat_of(config), seconds[at], mean[at].round(2))


def band(curves: Sequence[Curve]) -> Band:
    """Several seeds of one agent as one curve, where all of them have values."""
    whole = [curve for curve in curves if len(curve.steps)]
    if not whole:
        return Band(curves[0].agent, 0, *np.zeros((4, 0)))
    low, high = max(curve.steps[0] for curve in whole), min(curve.steps[-1] for curve in whole)
    steps = whole[0].steps if len(whole) == 1 else np.linspace(low, max(low, high), POINTS)
    returns = np.stack([np.interp(steps, curve.steps, curve.returns) for curve in whole])  # [seeds, points]
    seconds = np.mean([np.interp(steps, curve.steps, curve.seconds) for curve in whole], 0)
    return Band(whole[0].agent, len(whole), steps, returns.mean(0), returns.std(0), seconds)


def window_score(folder: Path, repeat: int, low: float, high: float) -> float:
    """Mean return of the training episodes that ended after `low` and up to `high` environment steps; NaN if none."""
    steps, _, returns = episodes(folder)
    inside = returns[(steps * repeat > low) & (steps * repeat <= high)]
    return float(inside.mean()) if len(inside) else float("nan")


@dataclass(frozen=True)
class Published:
    """A published curve: mean and standard deviation over seeds of the returns up to each number of steps."""

    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    seeds: int


def published(suite: str) -> dict[str, Published]:
    """The published curves of a suite, by task; their source is in the file's first lines."""
    text = resources.files("fastwm.configs").joinpath("published", f"{suite}.csv").read_text()
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    curves = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        steps, mean, std = (
            np.array([float(row[key]) for row in own]) for key in ("env_steps_upto", "mean_return", "std_over_seeds")
        )
        curves[task] = Published(steps, mean, std, int(own[0]["seeds"]))
    return curves
