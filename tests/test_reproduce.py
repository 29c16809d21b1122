"""`fastwm reproduce`: the published protocol, the gate, and a run from the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fastwm.cli import main
from fastwm.runner import reproduce as module
from fastwm.runner.curves import Curve, band, published, window_score
from fastwm.runner.reproduce import Verdict, reproduce, suites


def test_every_suite_is_whole() -> None:
    """Each has tasks, a preset that exists for each agent, and a gate."""
    for suite in suites().values():
        assert suite.environments() and suite.presets
        assert suite.published or suite.gate.keys() == suite.environments().keys()
        assert suite.episodes or (suite.window and suite.steps)
    assert suites()["dmc_proprio"].environments()["dmc_walker_walk"] == "dmc:walker_walk"
    assert suites()["atari100k"].environments()["atari_battle_zone"] == "atari:BattleZone"
    curve = published("dmc_proprio")["dmc_finger_spin"]
    assert (curve.steps[1], curve.mean[1], curve.seeds) == (40_000, 346.0, 5)


def test_a_score_is_the_mean_of_the_episodes_in_the_window(tmp_path: Path) -> None:
    ended = [(100, 1.0), (200, 2.0), (250, 4.0), (300, 8.0), (301, 16.0)]
    lines = [json.dumps({"step": step, "seconds": step / 10, "episode/return": value}) for step, value in ended]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert window_score(tmp_path, 1, 200, 300) == 6.0  # after 200, up to 300
    assert window_score(tmp_path, 2, 400, 600) == 6.0  # a step is two of the environment's
    assert math.isnan(window_score(tmp_path, 1, 301, 400))


def test_seeds_as_one_curve() -> None:
    one = Curve("a", np.array([0.0, 10.0]), np.array([0.0, 1.0]), np.array([0.0, 10.0]))
    two = Curve("a", np.array([0.0, 10.0]), np.array([0.0, 3.0]), np.array([2.0, 14.0]))
    got = band([one, two])
    assert got.seeds == 2 and got.steps[0] == 0 and got.steps[-1] == 10
    np.testing.assert_allclose([got.mean[0], got.mean[-1], got.std[-1], got.seconds[-1]], [1, 12, 2, 2])
    assert len(band([one, Curve("a", *np.zeros((3, 0)))]).steps) == 2


@pytest.mark.parametrize(("scores", "passed"), [([11.0, 9.0], True), ([9.0, 10.0], False), ([math.nan], False)])
def test_the_gate_looks_at_the_mean(scores: list[float], passed: bool) -> None:
    assert Verdict("t", "a", 1, scores, 10.0, None, 0.0).passed is passed
    assert Verdict("t", "a", 1, scores, 10.0, None, 0.0, smoke=True).passed is None


def test_smoke_and_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "cartpole", "--smoke", "--seeds", "2", "--logdir", str(tmp_path)]
    assert main(command) == 0
    result = json.loads((tmp_path / "reproduce.json").read_text())
    assert result["smoke"] and result["rows"][0]["passed"] is None and len(result["rows"][0]["scores"]) == 2
    assert result["curves"]["cartpole"][0]["seeds"] == 2
    assert (tmp_path / "reproduce.png").stat().st_size > 1000
    assert "no verdict" in capsys.readouterr().out
    assert main(command) == 0 and "continuing at step" in capsys.readouterr().out


def test_a_score_below_the_gate_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(*_: object) -> tuple[Verdict, None]:
        return Verdict("cartpole", "dreamer_v3", 18_000, [20.0], 300.0, None, 60.0), None

    monkeypatch.setattr(module, "_play_steps", play)
    assert main(["reproduce", "cartpole", "--logdir", str(tmp_path)]) == 1
    assert "below the gate: dreamer_v3 on cartpole" in capsys.readouterr().err
    assert reproduce("cartpole", tmp_path)[0].passed is False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dmc"], "unknown suite 'dmc'; there is: dmc_proprio"),
        (["dmc_proprio", "--tasks", "walker_fly"], "unknown task 'walker_fly'"),
        (["dmc_proprio", "--agents", "planet"], "unknown agent 'planet'; there is: dreamer_v3"),
        (["cartpole", "--seeds", "0"], "seeds must be at least 1"),
        (["takecover", "--smoke"], "learns in stages: --steps and --smoke do not apply"),
    ],
)
def test_wrong_use_is_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *args, "--logdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
