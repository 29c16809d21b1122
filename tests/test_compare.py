"""Comparing agents: each in its folder, resumable, one table and one picture."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastwm.agents import PlaNetConfig
from fastwm.cli import main
from fastwm.runner.compare import agent_config, preset_for
from fastwm.runner.config import TrainConfig, write_config


def compare(logdir: Path, *args: str) -> int:
    return main(["compare", "--env", "pendulum", "--agents", "planet,dreamer_v2", "--logdir", str(logdir),
                 "--preset", "test_only", "--episodes", "2", *args])  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(agent: str) -> dict[str, Any]:
        settings = {"num_envs": 2, "batch_size": 2, "batch_length": 8, "train_ratio": 1, "prefill": 200}
        sizes = {"deter": 8, "hidden": 8, "stoch": 2, "units": 8}
        planner = {"candidates": 4, "elites": 2, "iterations": 1, "horizon": 2} if agent == "planet" else {}
        return {"test_only": settings | {"agent": sizes | planner}}

    monkeypatch.setattr("fastwm.runner.compare.preset_blocks", blocks)
    monkeypatch.setattr("fastwm.runner.config.preset_blocks", blocks)


def test_trains_each_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, "--steps", "420") == 0
    result = json.loads((tmp_path / "compare.json").read_text())
    assert [row["agent"] for row in result["agents"]] == ["planet", "dreamer_v2"]
    assert all(row["environment steps"] == 420 and row["updates"] > 0 for row in result["agents"])
    for (curve,) in result["curves"].values():
        assert len(curve["steps"]) == len(curve["seconds"]) == len(curve["returns"]) > 0
    assert (tmp_path / "compare.md").read_text().count("|\n") == 4
    assert (tmp_path / "compare.png").stat().st_size > 1000
    assert compare(tmp_path, "--steps", "480") == 0
    assert "continuing at step 420" in capsys.readouterr().out
    assert json.loads((tmp_path / "compare.json").read_text())["agents"][1]["environment steps"] == 480


def test_wrong_use_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["--agents", "dreamer_v3,dreamer_v3"], "name every agent once"),
        (["--agents", "planet,dreamer_v9"], "unknown agent 'dreamer_v9'"),
        (["--preset", "none"], "unknown preset 'none' for planet"),
    ):
        assert compare(tmp_path, "--steps", "10", *args) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
        assert not list(tmp_path.iterdir())
    (tmp_path / "planet").mkdir()
    write_config(tmp_path / "planet/config.yaml", "planet", TrainConfig(PlaNetConfig(), env="cartpole"))
    assert compare(tmp_path, "--steps", "10") == 2
    assert "is a run on cartpole, not on pendulum" in capsys.readouterr().err


def test_presets_and_repeats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The preset written for the environment is found, and steps count repeated actions."""
    monkeypatch.undo()
    assert preset_for("dreamer_v2", "cartpole", "") == ("cartpole",)
    assert preset_for("planet", "pendulum", "") in (("small",), ())
    for agent in ("planet", "dreamer_v1", "dreamer_v2", "dreamer_v3"):
        config = agent_config(agent, "dmc:cartpole_swingup", 8000, tmp_path / agent, "", 3)
        assert config.preset == ("cartpole_swingup",) and config.steps == 1000 and config.seed == 3
