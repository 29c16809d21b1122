"""A run's life: who holds its folder, how it is ended, what it goes on with, and what it refuses to begin."""

import contextlib
import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastwm import cli
from fastwm.agents import DreamerV3Config
from fastwm.cli import main
from fastwm.errors import FastwmError, Interrupted
from fastwm.runner import checkpoint
from fastwm.runner import compare as compare_module
from fastwm.runner.config import TrainConfig
from fastwm.runner.folder import LOCK, run_folder
from fastwm.runner.pace import Pace, first_update
from fastwm.runner.train import Trainer
from fastwm.writing import disk_errors, replacing
from tests.agents_under_test import TINY, tiny
from tests.test_runner import error_of, run


class Faulty(gymnasium.Env):
    """Fails, or interrupts the process, at a chosen moment."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, at: str = "step", how: str = "disk"):
        self.at, self.how = at, how
        self.fail("make")

    def fail(self, now: str) -> None:
        if now == self.at and self.how == "disk":
            raise OSError(5, "Input/output error", "level.dat")
        if now == self.at:
            raise KeyboardInterrupt

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.fail("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.fail("step")
        return np.zeros(3, np.float32), 1.0, False, False, {}


def faulty(*args: str) -> list[str]:
    return ["--env", "tests.test_lifetime:Faulty", "--env-args", *args]


# One process at a time


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    logdir = tmp_path / "a" / "run"
    with run_folder(logdir):
        holder = f"in use by process {os.getpid()} on {socket.gethostname()} since 20"
        with pytest.raises(FastwmError, match=holder), run_folder(logdir):
            pass
        assert (logdir / LOCK).exists()
    assert not logdir.parent.exists()  # nothing came of it
    with run_folder(logdir):
        (logdir / "config.yaml").touch()
    assert [path.name for path in logdir.iterdir()] == ["config.yaml"]


def test_a_forked_process_does_not_hold_the_folder(tmp_path: Path) -> None:
    """An environment's process may outlive the run that was killed."""
    ready, wait = os.pipe()
    with run_folder(tmp_path):
        if not (child := os.fork()):
            os.read(ready, 1)
            os._exit(0)
    with run_folder(tmp_path):
        os.write(wait, b"x")
        os.waitpid(child, 0)


# Ends


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_ctrl_c_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, name, interrupted)
    assert main([name]) == 130
    assert capsys.readouterr().err == "fastwm: interrupted\n"


def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    lines = [
        "import signal",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "signal.raise_signal(signal.SIGINT)",
    ]
    (tmp_path / "torch.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "fastwm.cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fastwm: interrupted\n")


def test_ctrl_c_while_an_environment_is_made_leaves_no_folder(tmp_path: Path, capsys: Any) -> None:
    assert run("--logdir", str(tmp_path / "a" / "b"), *faulty("at", "make", "how", "ctrl-c")) == 130
    assert capsys.readouterr().err == "fastwm: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["make", "reset", "step"])
def test_an_environments_own_error_is_not_the_folders(tmp_path: Path, at: str, capsys: Any) -> None:
    with contextlib.suppress(OSError):
        run("--logdir", str(tmp_path / "run"), *faulty("at", at))
    assert "cannot use the folder" not in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints").exists() == (at == "step")


def test_a_stopped_comparison_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = types.SimpleNamespace(stop="stopped by SIGINT")
    monkeypatch.setattr(compare_module, "train", lambda *_: stopped)
    with pytest.raises(Interrupted, match="stopped by SIGINT while training dreamer_v3; the same command continues"):
        compare_module.compare("cartpole", ["dreamer_v3"], 100, tmp_path)


def test_a_comparison_builds_all_before_it_trains_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "cartpole", "--agents", "dreamer_v2,planet", "--steps", "100000", "--logdir", str(tmp_path)]
    assert "planet plans with real actions only" in error_of(main(["compare", *arguments]), capsys)
    assert not list(tmp_path.iterdir())


# Written whole, or not at all


def test_what_a_kill_left_is_removed_or_gets_its_name_back(tmp_path: Path) -> None:
    agent = tiny("dreamer_v3")
    for step in (1, 2):
        checkpoint.save(tmp_path, step, agent, {}, {})
    one, two = reversed(checkpoint.checkpoints(tmp_path))
    (one.parent / f"tmp-{two.name}").mkdir()
    (one.parent / f"old-{one.name}").mkdir()  # killed after the new one had its name
    two.rename(two.with_name(f"old-{two.name}"))  # killed before
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in one.parent.iterdir()) == [one.name, two.name]
    checkpoint.read_meta(two)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the disk is full"),
        (OSError("1000 requested and 24 written"), "the disk is full"),
        (checkpoint.SafetensorError("Error while serializing: I/O error: x (os error 28)"), "the disk is full"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
    ids=["full", "quota", "numpy", "safetensors", "forbidden"],
)
def test_every_writers_error_is_read(error: Exception, reason: str) -> None:
    message = f"cannot write x: {reason}; what was saved before is safe"
    with pytest.raises(FastwmError, match=message), disk_errors(Path("x")):
        raise error


# Going on


def test_other_precision_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored latents take the precision of the run that goes on; so do they on a machine without bfloat16."""
    logdir = ["--logdir", str(tmp_path)]
    assert run(*logdir, "--steps", "120") == 0
    for bfloat16, precision, steps in ((True, "bf16", 160), (False, "bf16", 200)):
        monkeypatch.setattr("fastwm.agents.agent.has_bfloat16", lambda device, has=bfloat16: has)
        assert run(*logdir, "--steps", str(steps), "--agent.precision", precision) == 0
        newest = checkpoint.checkpoints(tmp_path)[0]
        latents = checkpoint.read_tensors(newest / "latent-000000000000.safetensors", "cpu")
        assert latents["deter"].dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        assert latents["stoch"].dtype == torch.uint8


def test_every_start_has_its_own_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, module = [], sys.modules["fastwm.runner.shard"]
    make_env = module.make_env  # type: ignore[attr-defined]

    def watched(name: str, num_envs: int, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return make_env(name, num_envs, seed, **options)

    monkeypatch.setattr(module, "make_env", watched)
    for steps in ("40", "80", "120"):
        assert run("--logdir", str(tmp_path), "--steps", steps, "--seed", "5") == 0
    assert seeds[0] == 5 and len(set(seeds)) == 3


# Nothing is begun that learns nothing


def test_a_run_that_would_learn_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logdir = tmp_path / "run"
    for args, message in (
        (["--replay-capacity", "64"], "replay_capacity 64 is too small to learn from"),
        (["--prefill", "500", "--steps", "400"], "prefill 500 is more than steps 400, so nothing would be learnt"),
    ):
        assert message in error_of(run("--logdir", str(logdir), *args), capsys)
        assert not logdir.exists()


def test_a_run_too_short_to_learn_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--logdir", str(tmp_path), "--steps", "80") == 0
    said = capsys.readouterr().out
    reason = "the first update comes at step 96, beyond the 80 steps of this run: replay must hold 32 windows of 9 rows"
    assert said.count(reason) == 2 and f"nothing was learnt in 80 steps: {reason}" in said
    assert run("--logdir", str(tmp_path), "--steps", "96") == 0
    said = capsys.readouterr().out
    assert "updates 2" in said and "nothing was learnt" not in said


@pytest.mark.parametrize("changes", [{}, {"prefill": 130}, {"update_every": 50}, {"num_envs": 3}], ids=str)
def test_the_first_update_comes_when_it_was_told(changes: dict[str, int], tmp_path: Path, monkeypatch: Any) -> None:
    config = TrainConfig(DreamerV3Config(**TINY["dreamer_v3"]), env="cartpole", steps=200, num_envs=4, batch_size=4,
                         batch_length=8, train_ratio=8, replay_capacity=1000)  # fmt: skip
    for key, value in changes.items():
        setattr(config, key, value)
    trainer, at = Trainer("dreamer_v3", config, tmp_path), list[int]()
    trainer.update = lambda batch, write_back: at.append(trainer.step) or {}  # type: ignore[func-returns-value]
    trainer.run()
    trainer.close()
    assert at[0] == first_update(config)


def test_the_time_left_is_that_of_learning() -> None:
    """A thousand fast rows before the first update say nothing of the rest; nor do those between two bursts."""
    pace = Pace()
    assert pace.seconds_for(100) is None
    pace.mark(1000, 1.0)
    assert pace.seconds_for(100) is None
    pace.mark(1010, 11.0)
    assert pace.seconds_for(100) == pytest.approx(100)
    for step in range(1020, 3000, 10):  # now twice as fast
        pace.mark(step, 11 + (step - 1010) / 2)
    assert pace.seconds_for(100) == pytest.approx(50)
