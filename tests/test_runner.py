"""Runs: counters, checkpoints, exact resume, signals, and what wrong use is told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import fastwm
from fastwm.agents import DreamerV3Config
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, with_presets
from fastwm.runner.episodes import Episodes
from fastwm.runner.train import Ratio, Trainer
from tests.agents_under_test import tiny

FAST = [
    "--agent.deter", "16", "--agent.hidden", "8", "--agent.units", "8", "--agent.classes", "4", "--agent.stoch", "4",
    "--agent.imag-length", "3", "--batch-size", "4", "--batch-length", "8", "--replay-capacity", "4000",
    "--train-ratio", "8",
]  # fmt: skip


def run(*args: str) -> int:
    return main(["train", "dreamer_v3", "--env", "cartpole", "--preset", "cartpole", *FAST, *args])


class Broken(gymnasium.Env):
    """Observations turn to NaN after 20 steps."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        return np.full(3, np.nan if self.count > 20 else 0.5, np.float32), 1.0, False, False, {}


# Counters


@pytest.mark.parametrize(("ratio", "updates"), [(32, 313), (256, 2500), (512, 5000), (1024, 10000), (0, 0)])
def test_train_ratio(ratio: int, updates: int) -> None:
    """Train ratio: replayed steps a step taken; 10,000 steps at 1024 replayed ones an update."""
    due = Ratio(ratio / 1024)
    assert sum(due() for _ in range(10_000)) == updates


def test_a_length_counts_decisions() -> None:
    """Length of an episode: an episode of 2 decisions has 3 rows; the reset row carries no reward of it."""
    episodes, ended = Episodes(1), []
    for first, last, reward in (
        (True, False, 0),
        (False, False, 1),
        (False, True, 2),
        (True, False, 0),
        (False, True, 5),
    ):
        flags = {"is_first": np.array([first]), "is_last": np.array([last])}
        ended += episodes.add(flags | {"reward": np.array([reward], np.float32)})
    assert ended == [(3.0, 2), (5.0, 1)]


# Resume (exact: `test_agents`)


def test_a_run_continues_and_the_command_line_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logdir = str(tmp_path / "run")
    assert run("--logdir", logdir, "--steps", "200") == 0
    assert main(["train", "dreamer_v3", "--logdir", logdir, "--steps", "400", "--agent.lr", "1e-5"]) == 0
    assert "continuing at step 200" in capsys.readouterr().out
    config = (tmp_path / "run/config.yaml").read_text()
    assert "lr: 1.0e-05" in config and "deter: 16" in config and "env: cartpole" in config
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] > 200
    assert (tmp_path / "run/plots/returns.png").stat().st_size > 1000
    assert (tmp_path / "run/plots/imagination.png").stat().st_size > 1000
    assert main(["eval", logdir, "--episodes", "4"]) == 0
    result = json.loads((tmp_path / "run/eval.json").read_text())
    assert len(result["returns"]) == 4 and "mean return" in capsys.readouterr().out
    assert main(["dream", logdir]) == 0
    agent = fastwm.load(logdir)
    action, state = agent.act({"obs": np.zeros((2, 4), np.float32), "is_first": np.ones(2, bool)})
    action, _ = agent.act({"obs": np.zeros((2, 4), np.float32), "is_first": np.zeros(2, bool)}, state)
    assert action.shape == (2,)


def spawn(logdir: Path, *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fastwm.cli", "train", "dreamer_v3", "--env", "cartpole", "--preset", "cartpole",
               *FAST, "--logdir", str(logdir), "--log-every", "0.2", *args]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=as_in_a_terminal)  # fmt: skip


def as_in_a_terminal() -> None:
    """`nohup` and background jobs hand on that they ignore these."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def wait_for(done: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            process.kill()
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_killed_in_mid_training_it_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = spawn(tmp_path, "--save-every", "0.5")
    wait_for(lambda: len(checkpoint.checkpoints(tmp_path)) >= 2, process)
    assert main(["train", "dreamer_v3", "--logdir", str(tmp_path)]) == 2
    assert f"{tmp_path} is in use by process {process.pid} on " in capsys.readouterr().err
    fastwm.load(tmp_path)
    process.kill()
    process.communicate()
    step = int(checkpoint.checkpoints(tmp_path)[0].name)
    (tmp_path / "metrics.jsonl").open("a").write(json.dumps({"step": step + 10**6, "episode/return": 1.0}) + '\n{"torn')
    assert main(["train", "dreamer_v3", "--logdir", str(tmp_path), "--steps", str(step + 104)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) <= step + 104  # what was lost with the kill is not told twice
    assert int(checkpoint.checkpoints(tmp_path)[0].name) == step + 104


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_signals_save_and_leave(tmp_path: Path, number: signal.Signals) -> None:
    process = spawn(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.send_signal(number)
    if number == signal.SIGHUP:  # a closed terminal sends it twice
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"stopped by {number.name}: saved at step" in output
    assert len(checkpoint.checkpoints(tmp_path)) == 1


# Wrong use


def error_of(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a wrong command prints."""
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("fastwm: error: ") and "\n" not in error, error
    return error


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logdir = ["--logdir", str(tmp_path / "x")]
    for args, message in (
        (["train", "dreamerv9"], "unknown agent 'dreamerv9'; there is: planet"),
        (["fly"], "unknown command 'fly'"),
        (["train"], "needs an agent"),
        (["train", "dreamer_v3", *logdir], "no environment given"),
        (["train", "dreamer_v3", "--env", "cartpol", *logdir], "cartpole"),
        (["train", "dreamer_v3", "--env", "cartpole", "--preset", "size2m", *logdir], "unknown preset 'size2m'"),
        (["train", "dreamer_v3", "--env", "cartpole", "--device", "tpu", *logdir], "device 'tpu'"),
        (["train", "dreamer_v3", "--env", "cartpole", "--steps", "0", *logdir], "at least 1"),
        (["eval", str(tmp_path / "none")], "not the folder of a run"),
        (["dream", str(tmp_path / "none")], "not the folder of a run"),
        (["bench", "update", "--size", "size2m"], "unknown preset 'size2m'"),
        (["bench", "nothing"], "no benchmark of nothing"),
        (["train", "dreamer_v3", "--env", "cartpole", "--no-such-setting", "3", *logdir], "no option --no-such"),
    ):
        assert message in error_of(main(args), capsys)
        assert not (tmp_path / "x").exists()


def test_a_nan_observation_is_named_with_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "dreamer_v3", "--env", "tests.test_runner:Broken", "--preset", "cartpole", *FAST,
                 "--num-envs", "2", "--logdir", str(tmp_path)])  # fmt: skip
    error = error_of(code, capsys)
    assert "'obs' of environment 0" in error and "at its step 21" in error
    assert len(checkpoint.checkpoints(tmp_path)) == 1  # nothing is lost


def test_the_folder_of_another_agent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("agent_name: planet\nsteps: 5\n")
    assert "is a run of planet" in error_of(run("--logdir", str(tmp_path)), capsys)
    (tmp_path / "config.yaml").write_text("][")
    assert "not a run's configuration" in error_of(run("--logdir", str(tmp_path)), capsys)


def test_a_corrupted_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logdir = ["--logdir", str(tmp_path)]
    assert run(*logdir, "--steps", "200") == 0
    assert run(*logdir, "--steps", "400") == 0
    newest = checkpoint.checkpoints(tmp_path)[0]
    weights = newest / "agent.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(*logdir, "--steps", "420") == 0
    assert "continuing at step 200" in capsys.readouterr().out and "agent.safetensors is corrupted" in caplog.text
    # Nothing good gave way to what cannot be read, and that does not come back.
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [424, 200]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    for path in checkpoint.checkpoints(tmp_path):
        (path / "meta.json").write_text("{")
    assert "can be read" in error_of(run(*logdir, "--steps", "500"), capsys)


def test_other_sizes_do_not_fit_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--logdir", str(tmp_path), "--steps", "40") == 0
    config = (tmp_path / "config.yaml").read_text()
    for change, message in (
        (["--agent.units", "16"], "begun with agent.units 8 (now 16): its weights fit no other"),
        (["--num-envs", "4"], "begun with num_envs 8 and its replay fits no other: leave out --num-envs 4"),
        (["--batch-length", "5"], "begun with batch_length 8 and its replay fits no other: leave out --batch-length 5"),
        (
            ["--env", "acrobot"],
            "observation 'obs' of acrobot is float32 6, but this run was trained with float32 4",
        ),
    ):
        assert message in error_of(run("--logdir", str(tmp_path), "--steps", "60", *change), capsys)
        assert (tmp_path / "config.yaml").read_text() == config


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tiny("dreamer_v3")
    checkpoint.save(tmp_path, 1, agent, {}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(FastwmError, match="the disk is full; earlier checkpoints are untouched"):
        checkpoint.save(tmp_path, 2, agent, {}, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000001"]


def test_spaces_survive_json() -> None:
    for space in (spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.Box(0, 255, (8, 8, 3), np.uint8),
                  {"a": spaces.Box(-np.inf, np.inf, (), np.float32), "b": spaces.Discrete(2)}):  # fmt: skip
        assert checkpoint.space_from_json(json.loads(json.dumps(checkpoint.space_to_json(space)))) == space


def test_diverged_weights_are_not_saved(tmp_path: Path) -> None:
    config = with_presets(TrainConfig(DreamerV3Config()), "dreamer_v3", ["cartpole"])
    trainer = Trainer("dreamer_v3", config, tmp_path)
    trainer.save()
    trainer.agent.critic.out.bias.data[3] = float("nan")
    with pytest.raises(FastwmError, match=r"critic\.out\.bias is not finite; nothing was saved"):
        trainer.save()
    assert len(checkpoint.checkpoints(tmp_path)) == 1


def test_bench_update_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "update", "--size", "cartpole", "--json", str(tmp_path / "x.json")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["median_ms"] > 0
    assert result["repeats"] >= 5
    assert "median" in capsys.readouterr().out
