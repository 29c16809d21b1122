"""Published results again: train, resume, score by the published protocol, draw, and pass or fail at a gate."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import fastwm
from fastwm.agents import agent_name, agent_spec
from fastwm.errors import FastwmError, Interrupted
from fastwm.info import commit, device_name
from fastwm.runner import plots
from fastwm.runner.compare import Run
from fastwm.runner.config import StagedConfig, TrainConfig, merge, read_config, with_presets
from fastwm.runner.curves import WINDOW, Band, Published, band, published, read_curve, repeat_of, window_score
from fastwm.runner.evaluate import evaluate
from fastwm.runner.plots import plt
from fastwm.runner.stages import train_stages
from fastwm.writing import write_text

COLUMNS = 3  # of panels in the picture
SMOKE_SIZES = {"deter": 64, "hidden": 16, "classes": 4, "stoch": 4, "units": 16, "depth": 2, "precision": "fp32"}


@dataclass(frozen=True)
class Suite:
    """One entry of `fastwm/configs/reproduce.yaml`, whose head explains the fields."""

    name: str
    presets: Mapping[str, str]
    tasks: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    env_args: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    repeat: int = 1
    window: int = 0
    episodes: int = 0
    published: str = ""
    deviations: float = 2.0
    gate: Mapping[str, float] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def curves(self) -> dict[str, Published]:
        return published(self.published) if self.published else {}

    def environments(self) -> dict[str, str]:
        """Task -> environment. Published names are `dmc_walker_walk`, `atari_battle_zone`."""
        if not self.family:
            return dict(self.tasks)
        prefix = self.family.rstrip(":") + "_"
        names = {task: task.removeprefix(prefix) for task in self.curves()}
        if self.family == "atari:":
            names = {task: name.title().replace("_", "") for task, name in names.items()}
        return {task: self.family + name for task, name in names.items()}


def suites() -> dict[str, Suite]:
    """All suites, by name."""
    file = resources.files("fastwm.configs").joinpath("reproduce.yaml")
    return {name: Suite(name, **entry) for name, entry in yaml.safe_load(file.read_text()).items()}


@dataclass
class Verdict:
    """An agent's scores on a task, and the gate's bound."""

    task: str
    agent: str
    steps: int
    scores: list[float]
    wanted: float | None
    published: float | None
    seconds: float
    smoke: bool = False

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def passed(self) -> bool | None:
        """None where there is no verdict: a smoke run, or a run without a gate at this number of steps."""
        return None if self.smoke or self.wanted is None else bool(self.mean >= self.wanted)


def reproduce(
    name: str, logdir: Path, tasks: Sequence[str] = (), agents: Sequence[str] = (), seeds: int = 3, steps: int = 0,
    smoke: bool = False,
) -> list[Verdict]:  # fmt: skip
    """Run a suite in `logdir`, or continue it there; returns a verdict for every task and agent.

    Args:
        tasks, agents: a choice of the suite's; none takes all tasks, and the suite's first agent.
        seeds: runs of each, with seeds from 0 on. The gate looks at their mean.
        steps: environment steps of every run, repeated actions counted; 0 takes the suite's.
        smoke: minutes in place of days, to see that everything runs. It gives no verdict.

    Each run has its folder, `TASK/AGENT/seed-K`. Writes `reproduce.json`, `.md` and `.png`.

    Raises:
        FastwmError: a name that does not exist, or a run that cannot start; Interrupted after a signal.
    """
    suite = _known(name, suites(), "suite")
    environments = suite.environments()
    chosen = {task: _known(_full_name(task, environments), environments, "task") for task in tasks or environments}
    names = [agent_name(agent) for agent in agents] or [next(iter(suite.presets))]
    for agent in names:
        _known(agent, suite.presets, "agent")
    if seeds < 1:
        raise FastwmError(f"seeds must be at least 1, got {seeds}")
    verdicts, bands = [], dict[str, list[Band]]()
    for task, env in chosen.items():
        task = _full_name(task, environments)
        for agent in names:
            folders = [logdir / task / agent / f"seed-{seed}" for seed in range(seeds)]
            play = _play_stages if agent_spec(agent).stages else _play_steps
            verdict, curve = play(suite, task, env, agent, folders, steps, smoke)
            verdicts.append(verdict)
            if curve is not None:
                bands.setdefault(task, []).append(curve)
            _write(suite, verdicts, bands, logdir, smoke)  # what is known so far, in case the next run takes days
    return verdicts


def _known(name: str, known: Mapping[str, Any], kind: str) -> Any:
    if name not in known:
        raise FastwmError(f"unknown {kind} {name!r}; there is: {', '.join(known)}")
    return known[name]


def _full_name(task: str, environments: Mapping[str, str]) -> str:
    """`walker_walk` for `dmc_walker_walk`."""
    return next((full for full in environments if full.partition("_")[2] == task), task)


def _play_steps(
    suite: Suite, task: str, env: str, agent: str, folders: Sequence[Path], steps: int, smoke: bool
) -> tuple[Verdict, Band]:
    """An agent that learns step by step: scored on its training episodes, as the published curves are."""
    configs = [_step_config(suite, env, agent, folder, seed, steps, smoke) for seed, folder in enumerate(folders)]
    runs = [Run(agent, folder, config) for folder, config in zip(folders, configs)]
    runs[0].check()
    seconds = [run.train().seconds for run in runs]
    repeat = repeat_of(configs[0]) * suite.repeat
    reached = configs[0].steps * repeat
    curve = suite.curves().get(task)
    if curve is not None and (curve.steps <= reached).any():
        reached = int(curve.steps[curve.steps <= reached][-1])  # the last published window that was played whole
    scores = [window_score(folder, repeat, reached - suite.window, reached) for folder in folders]
    if smoke:
        scores = [window_score(folder, repeat, 0, math.inf) for folder in folders]
    mean = wanted = None
    if curve is not None and reached in curve.steps:
        (at,) = np.flatnonzero(curve.steps == reached)
        mean, wanted = float(curve.mean[at]), float(curve.mean[at] - suite.deviations * curve.std[at])
    elif reached >= suite.steps:
        wanted = suite.gate.get(task)
    drawn = band([read_curve(agent, folder, config) for folder, config in zip(folders, configs)])
    drawn = replace(drawn, steps=drawn.steps * suite.repeat)
    return Verdict(task, agent, reached, scores, wanted, mean, float(np.mean(seconds)), smoke), drawn


def _step_config(
    suite: Suite, env: str, agent: str, folder: Path, seed: int, steps: int, smoke: bool
) -> TrainConfig[Any]:
    config: TrainConfig[Any] = TrainConfig(agent_spec(agent).config())
    saved = folder / "config.yaml"
    if saved.is_file():
        config = read_config(saved, config, agent)
    else:
        preset = (suite.presets[agent],)
        config = replace(with_presets(config, agent, preset), preset=preset, env=env, seed=seed)
        config = merge(config, {"env_args": config.env_args | {k: str(v) for k, v in suite.env_args.items()}})
        if smoke:
            small = {"agent": SMOKE_SIZES} if agent == "dreamer_v3" else {}
            config = merge(config, {key: v for key, v in suite.smoke.items() if key != "steps"} | small)
    total = steps or (suite.smoke["steps"] if smoke else suite.steps)
    return replace(config, steps=max(1, total // (repeat_of(config) * suite.repeat)), logdir=str(folder))


def _play_stages(
    suite: Suite, task: str, env: str, agent: str, folders: Sequence[Path], steps: int, smoke: bool
) -> tuple[Verdict, None]:
    """World Models: scored on episodes after training, as the article has it."""
    if steps or smoke:
        raise FastwmError(f"{agent} learns in stages: --steps and --smoke do not apply to {suite.name}")
    scores, seconds = [], []
    for seed, folder in enumerate(folders):
        config: StagedConfig[Any] = StagedConfig(agent_spec(agent).config())
        if (saved := folder / "config.yaml").is_file():
            config = read_config(saved, config, agent)
        else:
            preset = (suite.presets[agent],)
            config = replace(with_presets(config, agent, preset, env), preset=preset, env=env, seed=seed)
        trainer = train_stages(agent, replace(config, logdir=str(folder)), folder)
        if trainer.stop:
            raise Interrupted(f"{trainer.stop} while training {agent}; the same command continues")
        score = evaluate(folder, suite.episodes, seed=1_000_000, device=config.device, baselines=False)
        scores.append(score["mean"])
        seconds.append(float(getattr(trainer, "seconds", 0.0)))
    return Verdict(task, agent, 0, scores, suite.gate.get(task), None, float(np.mean(seconds))), None


def _write(
    suite: Suite, verdicts: Sequence[Verdict], bands: Mapping[str, Sequence[Band]], logdir: Path, smoke: bool
) -> None:
    rows = [{"task": v.task, "agent": v.agent, "environment_steps": v.steps, "scores": v.scores, "mean": v.mean,
             "wanted": v.wanted, "published": v.published, "passed": v.passed, "seconds": round(v.seconds, 1)}
            for v in verdicts]  # fmt: skip
    curves = {
        task: [{"agent": b.agent, "seeds": b.seeds, "steps": b.steps.tolist(), "mean": b.mean.tolist(),
                "std": b.std.tolist(), "seconds": b.seconds.tolist()} for b in own]
        for task, own in bands.items()
    }  # fmt: skip
    result = {"suite": suite.name, "smoke": smoke, "note": suite.note, "machine": machine()}
    result |= {"rows": rows, "curves": curves}
    write_text(logdir / "reproduce.json", json.dumps(_without_nan(result), indent=1))
    write_text(logdir / "reproduce.md", table(suite, verdicts, smoke))
    if bands:
        draw(suite, bands, logdir / "reproduce.png")


def machine() -> dict[str, Any]:
    """Where a score comes from: the device and the code."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device_name(device), "fastwm": fastwm.__version__, "commit": commit(), "torch": torch.__version__}


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN, which is the score where no episode ended in the window."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(suite: Suite, verdicts: Sequence[Verdict], smoke: bool = False) -> str:
    """Markdown."""
    lines = [
        f"# {suite.name}{': smoke run, no verdict' if smoke else ''}", "", suite.note, "",
        "| task | agent | environment steps | score | seeds | published | at least | verdict | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for v in verdicts:
        verdict = {True: "pass", False: "FAIL", None: "none"}[v.passed]
        numbers = (v.published, v.wanted)
        known = " | ".join("" if number is None else f"{number:.1f}" for number in numbers)
        steps = f"{v.steps:,}" if v.steps else ""
        score = "no episode" if math.isnan(v.mean) else f"{v.mean:.1f}"
        lines.append(
            f"| {v.task} | {v.agent} | {steps} | {score} | {len(v.scores)} | {known} | {verdict} | "
            f"{v.seconds / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(suite: Suite, bands: Mapping[str, Sequence[Band]], path: Path) -> Path:
    """Our curves over the published ones, a panel a task; bands are one standard deviation over seeds."""
    reference = suite.curves()
    columns = min(COLUMNS, len(bands))
    height = math.ceil(len(bands) / columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(5 * columns, 3.6 * height), squeeze=False, layout="constrained"
    )
    for panel in grid.flat[len(bands) :]:
        panel.set_visible(False)
    for panel, (task, own) in zip(grid.flat, bands.items()):
        last = max((float(each.steps[-1]) for each in own if len(each.steps)), default=0.0)
        if (curve := reference.get(task)) is not None:
            shown = curve.steps <= max(last * 1.25, curve.steps[min(1, len(curve.steps) - 1)])
            steps, mean, std = curve.steps[shown], curve.mean[shown], curve.std[shown]
            panel.plot(steps, mean, color="tab:gray", label=f"published, {curve.seeds} seeds")
            panel.fill_between(steps, mean - std, mean + std, color="tab:gray", alpha=0.25, lw=0)
        elif task in suite.gate:
            panel.axhline(suite.gate[task], color="tab:gray", ls="--", label="gate")
        for each in own:
            (line,) = panel.plot(each.steps, each.mean, label=f"fastwm {each.agent}, {each.seeds} seed(s)")
            if each.seeds > 1:
                low, high = each.mean - each.std, each.mean + each.std
                panel.fill_between(each.steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
        panel.set(xlabel="environment steps", ylabel=f"return (mean of {WINDOW} episodes)", title=task)
        panel.grid(alpha=0.3)
        panel.legend(loc="upper left", fontsize=8)
    return plots.save(figure, path)
