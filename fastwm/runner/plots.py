"""Pictures of a run: its returns, and what its model imagines beside what happened."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from fastwm.nn.spaces import classes, is_image
from fastwm.replay import Replay
from fastwm.runner.log import read_lines
from fastwm.writing import replacing

if Path(matplotlib.matplotlib_fname()).absolute().parent == Path.cwd():  # a stranger could start programs (LaTeX)
    matplotlib.rcdefaults()
matplotlib.use("Agg")
from matplotlib import pyplot as plt

WINDOW = 20  # episodes of the moving mean
CONTEXT = 5
MAX_CURVES = 6


def write_all(logdir: Path, agent: Any, replay: Replay) -> list[Path]:
    """Every picture there is something to show for; returns their paths."""
    paths = [returns(logdir)]
    if len(replay):
        paths.append(imagination(logdir / "plots" / "imagination.png", agent, replay))
    return [path for path in paths if path is not None]


def returns(logdir: Path) -> Path | None:
    """Episode returns against steps; with more than WINDOW of them, their moving mean too."""
    lines = [line for line in read_lines(logdir / "metrics.jsonl") if "episode/return" in line]
    if not lines:
        return None
    step = np.array([line["step"] for line in lines])
    value = np.array([line["episode/return"] for line in lines])
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(step, value, ".", color="tab:blue", alpha=0.25, label="episode")
    if len(value) > WINDOW:
        mean = np.convolve(value, np.ones(WINDOW) / WINDOW, "valid")
        axes.plot(step[WINDOW - 1 :], mean, color="tab:blue", label=f"mean of {WINDOW}")
    axes.set(xlabel="environment steps", ylabel="return", title=logdir.name)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    return save(figure, logdir / "plots" / "returns.png")


def save(figure: Any, path: Path) -> Path:
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)
    finally:
        plt.close(figure)
    return path


def imagination(path: Path, agent: Any, replay: Replay) -> Path | None:
    """One replayed window: what happened, and what the model dreams from its first rows and the actions alone."""
    batch = replayed_window(agent, replay)
    context = min(CONTEXT, len(batch["reward"]) - 2)
    predictions = {key: value[:, 0].cpu() for key, value in agent.open_loop(batch, context).items()}
    truth = {key: batch[key][1:, 0].cpu() for key in predictions}
    images = [key for key in predictions if is_image(agent.obs_space[key])]
    if images:
        return film_strip(path, truth[images[0]].float() / 255, predictions[images[0]], context)
    vectors = [key for key in predictions if not classes(agent.obs_space[key])]
    return curves(path, truth, predictions, vectors, context) if vectors else None


def replayed_window(agent: Any, replay: Replay) -> dict[str, Tensor]:
    """One window [T, 1, ...] from replay: the one with the fewest resets of eight that are drawn."""
    batch = {key: value.to(agent.device) for key, value in replay.sample(8).items()}
    whole = int((~batch["is_first"][1:].bool()).sum(0).argmax())
    return {key: value[:, whole : whole + 1] for key, value in batch.items()}


def curves(path: Path, truth: dict[str, Tensor], prediction: dict[str, Tensor], keys: list[str], context: int) -> Path:
    """Each entry of the vector observations over time."""
    entries = [(key, i) for key in keys for i in range(truth[key][0].numel())][:MAX_CURVES]
    figure, grid = plt.subplots(
        len(entries), 1, figsize=(7, 1.5 * len(entries)), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, (key, i) in zip(grid[:, 0], entries):
        axes.plot(truth[key].flatten(1)[:, i] if truth[key].ndim > 1 else truth[key], "k", label="real")
        axes.plot(
            prediction[key].flatten(1)[:, i] if prediction[key].ndim > 1 else prediction[key],
            "--",
            color="tab:orange",
            label="imagined",
        )
        axes.axvspan(0, context - 1, color="tab:green", alpha=0.15, label="seen")
        axes.set_ylabel(f"{key}[{i}]")
    grid[0, 0].legend(loc="upper left", ncols=3, fontsize="small")
    grid[-1, 0].set_xlabel("step")
    return save(figure, path)


def film_strip(path: Path, truth: Tensor, prediction: Tensor, context: int) -> Path:
    """Every few frames: truth, dream, and their difference below each other."""
    at = torch.linspace(0, len(truth) - 1, min(12, len(truth))).long()
    rows = [truth[at], prediction[at].clamp(0, 1), ((prediction[at] - truth[at] + 1) / 2).clamp(0, 1)]
    if truth.shape[-1] not in (1, 3):
        rows = [row[..., :1] for row in rows]
    return strips(path, [torch.cat(list(row), 1) for row in rows], ["real", "imagined", "error"], at.tolist(), context)


def strips(path: Path, rows: list[Tensor], names: list[str], steps: list[int], context: int = 0) -> Path:
    """Frames side by side [H, N*W, C], one strip for each name, with their steps below.

    A line and two words mark where the model stops seeing the frames: after the first `context` steps.
    """
    height, width = rows[0].shape[0], rows[0].shape[1] // len(steps)
    figure, axes = plt.subplots(
        figsize=(14, 0.6 + 14 * len(rows) * height / (width * len(steps))), layout="constrained"
    )
    axes.imshow(torch.cat(rows).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([height // 2 + height * i for i in range(len(rows))], names)
    axes.set_xticks([width // 2 + width * i for i in range(len(steps))], [str(step) for step in steps])
    axes.set_xlabel("step")
    seen = sum(step < context for step in steps)
    if 0 < seen < len(steps):
        axes.axvline(width * seen - 0.5, color="tab:green", linewidth=3)
        axes.text(width * seen - 0.5, -0.04 * height, f"context ({context} steps)  ", ha="right", color="tab:green")
        axes.text(width * seen - 0.5, -0.04 * height, "  imagined from the actions alone", color="tab:green")
    return save(figure, path)
