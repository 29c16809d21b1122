"""Whole runs of World Models by the command line: every stage, killed and continued, used and drawn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastwm
from fastwm.cli import main
from fastwm.envs import make_env
from fastwm.runner.config import StagedConfig, preset_blocks, with_presets
from fastwm.runner.log import read_lines
from tests.test_metrics import documented, written

SMALL = [
    "--agent.latents", "4", "--agent.collect.episodes", "8", "--agent.collect.chunk-episodes", "3",
    "--agent.collect.min-frames", "1", "--agent.collect.num-envs", "2", "--agent.v.steps", "3", "--agent.v.batch", "4",
    "--agent.m.hidden", "8", "--agent.m.steps", "3", "--agent.m.batch", "2", "--agent.m.length", "6",
    "--agent.c.population", "4", "--agent.c.rollouts", "2", "--agent.c.generations", "3", "--agent.c.evaluate-every",
    "2", "--agent.c.evaluate-rollouts", "3", "--agent.c.max-steps", "12", "--agent.c.num-envs", "4",
]  # fmt: skip


def command(env: str, logdir: Path, *more: str) -> list[str]:
    preset = "takecover_quick" if env == "cover" else "carracing_quick"
    if "--agent.iterations" not in more:
        more = ("--agent.iterations", "1", *more)
    return ["train", "world_models", "--env", f"tests.fake_tasks:{env}", "--preset", preset, "--logdir", str(logdir),
            *SMALL, *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("runs") / "cover"
    assert main(command("cover", logdir)) == 0
    return logdir


def snapshot(logdir: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(logdir.rglob("*")) if path.is_file()}


def test_the_same_command_does_nothing_twice(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(finished)
    assert main(["train", "world_models", "--trust", "--logdir", str(finished)]) == 0
    after = snapshot(finished)
    assert {k: v for k, v in after.items() if "config.yaml" not in k} == {
        k: v for k, v in before.items() if "config.yaml" not in k
    }
    assert capsys.readouterr().out.count("finished") == 5


def test_every_stage_has_metrics(finished: Path) -> None:
    expected = {"collect": "frames_per_second", "v": "reconstruction", "encode": "frames", "m": "latent", "c": "sigma"}
    for stage, key in expected.items():
        assert any(key in line for line in read_lines(finished / stage / "metrics.jsonl")), stage
    last = read_lines(finished / "c" / "metrics.jsonl")[-1]
    for key in ("generations_per_minute", "steps_per_second", "share/ask", "share/tell", "share/rollouts"):
        assert np.isfinite(last[key])


@pytest.mark.parametrize("stage", ["collect", "v", "encode", "m", "c"])
def test_the_list_of_metrics_is_what_a_stage_writes(finished: Path, stage: str) -> None:
    listed = documented(stage)
    optional = {key for key, meaning in listed.items() if "only with" in meaning or "only where" in meaning}
    found = written(finished / stage / "metrics.jsonl") - {"step"}
    assert found <= listed.keys() and listed.keys() - found <= optional


def test_load_act_eval_dream(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent, env = fastwm.load(finished), make_env("tests.fake_tasks:cover", 3, 0, size=64)
    obs, state = env.reset(), None
    for _ in range(4):
        action, state = agent.act(obs, state)
        obs = env.step(action)
    assert main(["eval", "--trust", str(finished), "--episodes", "4"]) == 0
    said = capsys.readouterr().out
    for name in ("random", "always left", "oscillate 100"):
        assert f"{name}: " in said
    result = json.loads((finished / "eval.json").read_text())
    assert result["stderr"] == pytest.approx(result["std"] / 2) and len(result["baselines"]["random"]["returns"]) == 4
    assert main(["dream", "--trust", str(finished)]) == 0
    for name in ("videos/dream.gif", "plots/dream_temperatures.png", "plots/curves.png", "plots/latents.png"):
        assert (finished / name).stat().st_size > 1000


def test_raised_settings_continue(finished: Path, tmp_path: Path) -> None:
    """More generations on the command line: C goes on, all before it stays."""
    before = snapshot(finished)
    assert main(["train", "world_models", "--trust", "--logdir", str(finished), "--agent.c.generations", "5"]) == 0
    assert read_lines(finished / "c" / "metrics.jsonl")[-1]["step"] == 5
    after = snapshot(finished)
    for stage in ("collect", "v", "encode", "m"):
        own = [k for k in before if f"/{stage}/" in k]
        assert own and all(before[k] == after[k] for k in own), stage


def test_stages_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logdir = tmp_path / "run"
    assert main(command("car", logdir, "--stage", "v")) == 2
    assert "stage collect is not finished" in capsys.readouterr().err
    for stage in ("collect", "v", "encode", "m", "c"):
        assert main(command("car", logdir, "--stage", stage)) == 0, stage
        assert (logdir / stage).is_dir()
    assert main(command("car", logdir, "--stage", "d")) == 2
    assert "there is: collect, v, encode, m, c" in capsys.readouterr().err
    action, _ = fastwm.load(logdir).act(make_env("tests.fake_tasks:car", 2, 0, size=None).reset())
    assert action.shape == (2, 3)


def test_real_fitness_and_a_second_iteration(tmp_path: Path) -> None:
    logdir = tmp_path / "run"
    more = ("--agent.iterations", "2", "--agent.c.fitness", "real", "--agent.v.refine-steps", "2")
    assert main(command("car", logdir, *more)) == 0
    second = logdir / "iteration-1"
    assert len(list((second / "encode").glob("*.npz"))) == 6  # V was refined: both collections are encoded anew
    assert read_lines(second / "c" / "metrics.jsonl")[-1]["step"] == 3


def test_another_v_under_a_trained_m_is_refused(finished: Path, tmp_path: Path, capsys: Any) -> None:
    again = ["train", "world_models", "--trust", "--logdir", str(finished)]
    assert main([*again, "--agent.v.steps", "5", "--stage", "v"]) == 0
    assert main(["train", "world_models", "--trust", "--logdir", str(finished)]) == 2
    assert "V has changed since stage m began" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["v", "c"])
def test_killed_by_a_signal_and_continued(tmp_path: Path, stage: str) -> None:
    """SIGTERM in the middle of a stage: it saves, says so, and the same command ends with what one run has."""
    logdir = tmp_path / "run"
    long = ["--agent.v.steps", "60"] if stage == "v" else ["--agent.c.generations", "400"]
    arguments = command("cover", logdir, "--log-every", "0", *long)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastwm.cli", *arguments], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics, deadline = logdir / stage / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and len(read_lines(metrics)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped by SIGTERM: saved" in said
    saved = int(sorted((logdir / stage / "checkpoints").iterdir())[-1].name)
    assert 0 < saved < 400
    if stage == "c":
        arguments += ["--agent.c.generations", str(saved + 2)]
    assert main(arguments) == 0
    steps = [line["step"] for line in read_lines(metrics)]
    assert steps == sorted(set(steps)) and steps[-1] == (60 if stage == "v" else saved + 2)


def test_an_interrupted_v_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Weights after a stop at update 2 and a resume are those of one go, bit by bit; so is M over them."""
    straight, broken = tmp_path / "a", tmp_path / "b"
    assert main(command("cover", straight, "--stage", "collect")) == 0
    assert main(command("cover", broken, "--stage", "collect")) == 0
    assert main(command("cover", straight)) == 0
    for steps in ("2", "3"):
        assert main(command("cover", broken, "--stage", "v", "--agent.v.steps", steps)) == 0
    assert main(command("cover", broken, "--stage", "encode")) == 0
    for steps in ("1", "3"):
        assert main(command("cover", broken, "--stage", "m", "--agent.m.steps", steps)) == 0
    assert main(command("cover", broken)) == 0
    for (name, p), q in zip(fastwm.load(straight).named_parameters(), fastwm.load(broken).parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("env", ["takecover", "carracing"])
@pytest.mark.parametrize("preset", ["paper", "code", "quick"])
def test_presets(env: str, preset: str) -> None:
    from fastwm.agents import WorldModelsConfig

    config = with_presets(StagedConfig(WorldModelsConfig()), "world_models", [preset], env)
    assert config.env == env and config.agent.latents in (32, 64)
    assert f"{env}_{preset}" in preset_blocks("world_models")
    if preset != "quick":
        assert (config.agent.m.hidden, config.agent.c.population, config.agent.c.rollouts) == (
            512 if env == "takecover" else 256, 64, 16)  # fmt: skip
        assert config.agent.v.epochs == (1 if preset == "paper" else 10)
    if env == "takecover":
        temperature = {"paper": 1.15, "code": 1.25}.get(preset)
        assert temperature is None or config.agent.c.temperature == temperature
