"""Runs that come with the package: each acts and is played, its card is there, and nothing is written beside it."""

import re
from pathlib import Path

import pytest

import fastwm
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner.pretrained import FOLDER, card, locate, names


def files() -> dict[str, int]:
    return {str(path): path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", names())
def test_it_plays_as_its_card_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = re.search(r"commit ([0-9a-f]{7,}).*Mean return ([\d.]+) \+- ([\d.]+)", card(name))
    assert told and "    fastwm train " in card(name)
    assert "/" not in (locate(f"pretrained:{name}") / "config.yaml").read_text()
    before = files()
    score = fastwm.evaluate(f"pretrained:{name}", episodes=2)
    assert abs(score["mean"] - float(told[2])) <= 3 * float(told[3]) + 1
    assert main(["dream", f"pretrained:{name}"]) == 2
    assert "nothing is written beside it" in capsys.readouterr().err
    assert files() == before and sum(before.values()) < 12_000_000


def test_a_name_that_does_not_exist() -> None:
    assert names()
    with pytest.raises(FastwmError, match=r"no pretrained 'atlantis'; there is: "):
        fastwm.load("pretrained:atlantis")
    assert locate("~/runs") == Path.home() / "runs"


def test_its_dreams_can_be_played() -> None:
    pytest.importorskip("starlette")
    from fastwm.view.data import Run

    run = Run(locate("pretrained:cartpole"))
    step = run.step_dream(run.start_dream(0, 5)["dream"], None, 1.0)  # it has no replay: its agent plays first
    assert step["step"] == 1 and 0.9 < step["reward"] < 1.1
