"""Runs that are killed lose nothing; `python -m tests.kills` does the same for longer."""

import random
from pathlib import Path

import pytest

from fastwm.agents import AGENTS
from tests.kills import attack, warm_up


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


@pytest.mark.parametrize("name", AGENTS)
def test_killed_runs_lose_nothing(name: str, tmp_path: Path) -> None:
    attack(name, tmp_path, 3, random.Random(name), longest=0.7)
