"""Whole runs on environments with one thing in them that is unusual or wrong, by the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastwm.agents import DreamerV3Config
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner.config import TrainConfig
from fastwm.runner.trust import check_env
from tests.agents_under_test import TINY
from tests.test_world_models_runs import SMALL

AGENT = [text for key, value in TINY["dreamer_v3"].items()
         for text in (f"--agent.{key.replace('_', '-')}", str(value))]  # fmt: skip
RUN = ["--preset", "small", *AGENT, "--batch-size", "2", "--batch-length", "4", "--replay-capacity", "1000",
       "--steps", "24", "--train-ratio", "0", "--num-envs"]  # fmt: skip


def train(env: str, logdir: Path, *more: str, num_envs: int = 2) -> int:
    return main(["train", "dreamer_v3", "--env", f"tests.odd_envs:{env}", "--logdir", str(logdir), *RUN, str(num_envs),
                 *more])  # fmt: skip


def error_of(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command which fails prints."""
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("fastwm: error: ") and "\n" not in error, error
    return error


def scores(logdir: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((logdir / "eval.json").read_text(), parse_constant=refuse)


def test_evaluation_refuses_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("nan_when_told", tmp_path) == 0
    monkeypatch.setenv("ODD_NAN", "1")
    error = error_of(main(["eval", "--trust", str(tmp_path), "--episodes", "2"]), capsys)
    assert "'obs' of environment 0 is not finite" in error
    assert not (tmp_path / "eval.json").exists()


def test_evaluation_cuts_episodes_that_do_not_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("endless", tmp_path, "--log-every", "0") == 0
    assert main(["eval", "--trust", str(tmp_path), "--episodes", "3", "--max-steps", "7"]) == 0
    output = capsys.readouterr().out
    assert "3 of them cut after 7 steps (--max-steps)" in output
    assert "dreamer_v3: 0 of 3 episodes, 5 steps" in output
    result = scores(tmp_path)
    assert (result["cut"], result["returns"]) == (3, [7.0] * 3)


def test_episodes_that_end_are_not_cut(tmp_path: Path) -> None:
    assert train("plain", tmp_path) == 0
    assert main(["eval", "--trust", str(tmp_path), "--episodes", "4", "--max-steps", "11"]) == 0
    assert (scores(tmp_path)["cut"], scores(tmp_path)["returns"]) == (0, [11.0] * 4)


def test_evaluation_takes_the_number_of_environments_that_there_is(tmp_path: Path) -> None:
    assert train("fixed", tmp_path, num_envs=3) == 0
    assert main(["eval", "--trust", str(tmp_path), "--episodes", "4"]) == 0
    assert scores(tmp_path)["episodes"] == len(scores(tmp_path)["returns"]) == 6


def test_evaluation_names_the_space_that_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("changing", tmp_path) == 0
    monkeypatch.setenv("ODD_SIZE", "5")
    error = error_of(main(["eval", "--trust", str(tmp_path)]), capsys)
    assert "observation 'obs' of tests.odd_envs:changing is float32 5, but this run was trained with float32 3" in error


def test_keys_are_settings_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("observation_deter", tmp_path, "--keys", "deter", "out") == 0
    assert "{x: vector 3, left out: deter}" in capsys.readouterr().out
    again = ["train", "dreamer_v3", "--logdir", str(tmp_path), "--trust", "--steps"]
    assert main([*again, "30", "--env-args", "max_time", "9", "--keys", "x", "vector"]) == 0
    assert main(["eval", "--trust", str(tmp_path), "--episodes", "2"]) == 0
    config = (tmp_path / "config.yaml").read_text()
    assert "deter: out" in config and "x: vector" in config
    assert "max_time: '9'" in config, "a name that was not given before"


def test_an_option_given_does_not_vouch_for_those_of_the_folder() -> None:
    config = TrainConfig(DreamerV3Config(), env="cartpole", env_args={"size": "64", "base_path": "/dev/zero"})
    with pytest.raises(FastwmError, match="base_path"):
        check_env(Path("config.yaml"), config, "cartpole", ["size"])
    check_env(Path("config.yaml"), config, "cartpole", ["size", "base_path"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--env-args", "seed", "3"], "env_args cannot set seed"),
        (["--env-args", "colour", "3"], "plain has no argument 'colour'"),
        (["--env-args", "size"], "--env-args takes pairs"),
        (["--env-args", "size", "["], "env_args size is given as '['"),
        (["--keys", "camera", "image"], "keys names camera"),
    ],
)
def test_options_that_do_not_fit(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert message in error_of(train("plain", tmp_path, *more), capsys)


def test_environments_in_processes_may_use_torch(tmp_path: Path) -> None:
    """PyTorch's threads do not survive a fork: where an agent had acted before it, such environments hung."""
    apart = ["--env-args", "async_", "true", "--threads", "2"]
    assert train("uses_torch", tmp_path / "v3", *apart) == 0
    collect = ["train", "world_models", "--env", "tests.odd_envs:cover_with_torch", "--preset", "takecover_quick",
               "--logdir", str(tmp_path / "wm"), *SMALL, "--stage", "collect", *apart]  # fmt: skip
    commands = [["eval", str(tmp_path / "v3"), "--episodes", "2", "--trust"], collect]
    start_threads = "import torch; torch.nn.Linear(256, 256)(torch.ones(256, 256))"
    code = f"{start_threads}; from fastwm.cli import main; [main(args) for args in {commands}]"
    threads = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # passive: fast on a busy machine too
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=threads)
    assert "mean return 11.0" in done.stdout, done.stderr
    assert (tmp_path / "wm/collect/done.json").exists(), done.stderr
