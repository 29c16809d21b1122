"""Pictures of a World Models run: an episode beside its dream, dreams at three temperatures, curves, latents."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwm.envs import make_env
from fastwm.runner import checkpoint
from fastwm.runner.config import RunConfig, env_options, env_source
from fastwm.runner.log import read_lines
from fastwm.runner.plots import plt, save, strips
from fastwm.runner.video import enlarge, write_gif

CONTEXT = 30
LENGTH = 300
TEMPERATURES = (0.5, 1.0, 1.3)
SHOWN = 14
CURVES = {
    "v": ("reconstruction", "kl_unfloored"), "m": ("latent", "latent_active", "done", "reward"),
    "c": ("return/mean", "return/best", "evaluation/mean"),
}  # fmt: skip


def write_all(logdir: Path, agent: Any, config: RunConfig[Any], seed: int) -> list[Path]:
    """Everything there is something to show for; returns the paths."""
    batch = episode(logdir, agent, config, seed)
    video = agent.imagine_video(batch, CONTEXT)["image"][:, 0]
    paths = [
        write_gif(logdir / "videos" / "dream.gif", enlarge(video.cpu().numpy())),
        film_strip(logdir / "plots" / "dream.png", video),
        temperatures(logdir / "plots" / "dream_temperatures.png", agent, batch["image"][0]),
        latents(logdir / "plots" / "latents.png", agent, batch["image"][:, 0]),
        curves(logdir),
    ]
    return [path for path in paths if path is not None]


@torch.no_grad()
def episode(logdir: Path, agent: Any, config: RunConfig[Any], seed: int) -> dict[str, Tensor]:
    """The first `LENGTH` rows of an episode that the agent plays: V's frames, M's actions, `is_first`; [T, 1, ...]."""
    env = make_env(env_source(config), 1, seed, **env_options(config))
    checkpoint.check_spaces(checkpoint.newest(logdir, checkpoint.describe), env.obs_space, env.act_space, config.env)
    record, state = env.reset(), None
    rows: list[tuple[Tensor, ...]] = []
    while len(rows) < LENGTH and not record["is_last"][0]:
        action, state = agent.choose(record, state)
        frames = agent.task.frames(torch.as_tensor(record["image"]).to(agent.device))
        rows.append((frames, action, torch.as_tensor(record["is_first"]).to(agent.device)))
        record = env.step(agent.task.env_action(action))
    env.close()
    return dict(zip(("image", "action", "is_first"), map(torch.stack, zip(*rows))))


def film_strip(path: Path, video: Tensor) -> Path:
    """Every few frames of the side-by-side video, its panels below each other."""
    at = torch.linspace(0, len(video) - 1, min(SHOWN, len(video))).long()
    panels = video[at].cpu().unflatten(2, (3, -1)).movedim(2, 0)  # [3, N, H, W, C]
    rows = [torch.cat(list(panel), 1) for panel in panels]
    return strips(path, rows, ["real", "reconstructed", "dreamt"], at.tolist(), CONTEXT)


@torch.no_grad()
def temperatures(path: Path, agent: Any, start: Tensor, length: int = 150) -> Path:
    """Dreams from one first frame, the controller acting in them, at three temperatures."""
    rows, at = [], np.linspace(0, length - 1, SHOWN).astype(int)
    for temperature in TEMPERATURES:
        z, state = agent.latent(agent.encode(start)), agent.rnn.initial(1)
        first, frames = torch.ones(1, dtype=torch.bool, device=z.device), []
        for step in range(length):
            if step in at:
                frames.append(agent.vae.decode(z)[0])
            action = agent.controller(z, *state)
            prediction, state = agent.rnn.step(z, action, state, first)
            z, first = prediction.mixture.sample(temperature), torch.zeros_like(first)
        rows.append(torch.cat([(frame.cpu() * 255).to(torch.uint8) for frame in frames], 1))
    return strips(path, rows, [f"temperature {t:g}" for t in TEMPERATURES], at.tolist())


@torch.no_grad()
def latents(path: Path, agent: Any, frames: Tensor) -> Path:
    """How much each latent says: the mean of its variance, 1 where nothing, and how its mean varies."""
    latent = agent.encode(frames)
    variance, spread = latent.logvar.exp().mean(0).cpu(), latent.mu.var(0).cpu()
    order = variance.argsort()
    active = int((latent.logvar.mean(0) < -1).sum())
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    axes.bar(range(len(order)), spread[order], color="tab:blue", label="variance of the mean")
    axes.plot(range(len(order)), variance[order], "o", color="tab:orange", label="mean variance")
    axes.set(xlabel="latent, the most certain first", title=f"{active} of {len(order)} latents active")
    axes.legend()
    return save(figure, path)


def curves(logdir: Path) -> Path | None:
    """Losses of V and M and C's returns, over all updates and generations."""
    files = {name: logdir / name / "metrics.jsonl" for name in CURVES}
    lines = {name: read_lines(path) for name, path in files.items() if path.is_file()}
    if not lines:
        return None
    figure, grid = plt.subplots(1, len(lines), figsize=(4.5 * len(lines), 3.4), squeeze=False, layout="constrained")
    for axes, (name, rows) in zip(grid[0], lines.items()):
        for key in CURVES[name]:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points), label=key)
        axes.set(title=name.upper(), xlabel="generation" if name == "c" else "update")
        if name == "v":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return save(figure, logdir / "plots" / "curves.png")
