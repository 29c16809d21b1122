"""Starting runs: from Python with objects and agents of one's own, what --help says, and `~` in paths."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import fastwm
from fastwm.agents import AGENTS, AgentSpec, DreamerV3Config, PlaNet, PlaNetConfig
from fastwm.agents.dreamer_v3 import DreamerV3
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner.config import TrainConfig, default_preset, with_presets
from tests.agents_under_test import BOX, TINY, VECTOR, tiny

SHORT = {"steps": 60, "num_envs": 2, "batch_size": 2, "batch_length": 4, "prefill": 20, "train_ratio": 1,
         "replay_capacity": 500}  # fmt: skip


class Short(gymnasium.Env):
    """Episodes of five steps."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.left = 5
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return np.full(3, 0.1 * self.left, np.float32), 1.0, self.left == 0, False, {}


def test_training_from_python(tmp_path: Path) -> None:
    """By a function that no name can reach: the folder says so, and the same call continues."""
    settings = SHORT | {"agent": TINY["planet"]}
    agent = fastwm.train("planet", env=lambda: Short(), logdir=tmp_path, **settings)
    action, _ = agent.act({"obs": np.zeros((2, 3), np.float32), "is_first": np.ones(2, bool)})
    assert action.shape == (2, 1) and not agent.training
    again = fastwm.train("planet", env=lambda: Short(), logdir=str(tmp_path), steps=80)
    assert again.config == agent.config
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] > 60
    assert fastwm.evaluate(tmp_path, 2, env=lambda: Short())["mean"] == 5
    for use in (lambda: fastwm.evaluate(tmp_path), lambda: fastwm.train("planet", logdir=tmp_path)):
        with pytest.raises(FastwmError, match="was given in Python: pass env again"):
            use()


def test_a_class_or_function_of_a_module_is_remembered_by_its_name(tmp_path: Path) -> None:
    fastwm.train("planet", Short, tmp_path, **SHORT, agent=TINY["planet"])
    assert "env: tests.test_start:Short\n" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(FastwmError, match="--trust"):
        fastwm.evaluate(tmp_path, 2)
    assert fastwm.evaluate(tmp_path, 2, trust=True)["mean"] == 5


def test_wrong_settings_from_python(tmp_path: Path) -> None:
    for settings, message in (
        ({"agent": {"lr": -1}}, "agent.lr must be above 0, got -1"),
        ({"num_env": 3}, "unknown setting 'num_env'"),
        ({"preset": "huge"}, "unknown preset 'huge' for planet"),
        ({"env": ""}, "train needs env"),
        ({"logdir": ""}, "train needs logdir"),
    ):
        with pytest.raises(FastwmError, match=message):
            fastwm.train("planet", **({"env": Short, "logdir": tmp_path / "run"} | settings))
        assert not (tmp_path / "run").exists()


def test_an_agent_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no presets; Python and the command line of the same process take it."""

    class Mine(PlaNet):
        pass

    assert main(["train", "my_module:Mine", "--env", "pendulum"]) == 2
    error = capsys.readouterr().err.strip()
    assert "unknown agent 'my_module:Mine'" in error and "see fastwm.train" in error and "\n" not in error
    monkeypatch.setitem(AGENTS, "mine", AgentSpec(Mine, PlaNetConfig))
    agent = fastwm.train("mine", Short, tmp_path, **SHORT, agent=TINY["planet"])
    assert isinstance(agent, Mine) and isinstance(fastwm.load(tmp_path), Mine)
    assert main(["train", "mine", "--logdir", str(tmp_path), "--env", "tests.test_start:Short", "--steps", "70"]) == 0
    assert "continuing at step 60" in capsys.readouterr().out
    assert main(["train", "mine", "--env", "pendulum", "--preset", "small"]) == 2
    assert "unknown preset 'small' for mine; there is: none" in capsys.readouterr().err


def test_help_lists_the_agents(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", text, re.M) for name in AGENTS)
    assert "fastwm train AGENT --help" in text


@pytest.mark.parametrize(("args", "applied"), [
    (["planet"], "small"), (["dreamer_v3", "--preset", "size12m", "cartpole"], "size12m, cartpole"),
    (["world_models", "--env", "takecover"], "quick"), (["world_models"], ""),
], ids=str)  # fmt: skip
def test_help_names_the_presets_and_the_one_applied(
    args: list[str], applied: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["train", *args, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "Presets: " in text
    assert (f"Applied here: {applied}." if applied else "None is applied here") in text


def test_the_preset_applied_is_written_down(tmp_path: Path) -> None:
    fastwm.train("planet", Short, tmp_path, "small", **SHORT, agent=TINY["planet"])
    assert "preset:\n- small\n" in (tmp_path / "config.yaml").read_text()


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quoted, or behind `=`, the shell leaves it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fastwm.train("planet", Short, "~/run", **SHORT, agent=TINY["planet"])
    assert (tmp_path / "run/config.yaml").is_file()
    assert main(["train", "planet", "--env", "tests.test_start:Short", "--logdir=~/run", "--steps", "70"]) == 0
    assert "continuing at step 60" in capsys.readouterr().out
    assert main(["eval", "~/run", "--episodes", "2", "--trust"]) == 0
    assert main(["dream", "~/run"]) == 0
    assert fastwm.load("~/run").config.deter == 16
    assert not (tmp_path / "~").exists()


def test_a_large_agent_on_a_cpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny("dreamer_v3")
    monkeypatch.setattr("fastwm.agents.dreamer_v3.LARGE", 100)
    with pytest.warns(UserWarning, match=r"on a CPU an update takes minutes. DreamerV3Config\(\) is") as caught:
        DreamerV3(VECTOR, BOX, DreamerV3Config(**TINY["dreamer_v3"]))
    (size1m,) = re.findall(r"size1m is DreamerV3Config\((.*)\)", str(caught[0].message))
    quoted = {key: int(value) for key, value in (pair.split("=") for pair in size1m.split(", "))}
    assert DreamerV3Config(**quoted) == with_presets(TrainConfig(DreamerV3Config()), "dreamer_v3", ["size1m"]).agent


@pytest.mark.parametrize(
    ("gpu", "agent", "env", "env_args", "preset"),
    [
        (0, "dreamer_v3", "dmc:walker_walk", {}, ("dmc_proprio", "size1m")),
        (0, "dreamer_v3", "dmc:walker_walk", {"pixels": "true"}, ("dmc_vision", "size1m")),
        (0, "dreamer_v3", "atari:Pong", {}, ("atari100k", "size1m")),
        (0, "dreamer_v3", "cartpole", {}, ("cartpole",)),
        (0, "dreamer_v3", "dmc:cartpole_swingup", {}, ("cartpole_swingup",)),
        (0, "dreamer_v3", "gym:Acrobot-v1", {}, ("small",)),
        (0, "planet", "dmc:walker_walk", {}, ("small",)),
        (80, "dreamer_v3", "dmc:walker_walk", {}, ("dmc_proprio",)),
        (80, "dreamer_v3", "dmc:walker_walk", {"pixels": "true"}, ("dmc_vision",)),
        (12, "dreamer_v3", "dmc:walker_walk", {"pixels": "true"}, ("dmc_vision", "size12m")),
        (80, "dreamer_v3", "gym:Acrobot-v1", {}, ("size12m",)),
        (80, "dreamer_v2", "atari:Pong", {}, ("atari",)),
    ],
)
def test_the_environment_chooses_the_preset(
    gpu: int, agent: str, env: str, env_args: dict[str, str], preset: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official one of its family, in a size for a CPU, or for a GPU of so many GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu > 0)
    memory = SimpleNamespace(total_memory=gpu * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert default_preset(agent, env, env_args) == preset
