"""fastwm/configs/metrics.yaml lists what the agents log, no more and no less."""

import re
from pathlib import Path

import pytest

from fastwm.agents import agent_spec
from fastwm.runner.config import TrainConfig
from fastwm.runner.log import metric_meanings, read_lines
from fastwm.runner.train import train
from tests.agents_under_test import TINY, names

EVERYTHING = {"planet": {"overshooting_distance": 2}, "dreamer_v1": {"predict_cont": True},
              "dreamer_v2": {"predict_cont": True}}  # fmt: skip


def documented(name: str) -> dict[str, str]:
    """Metric -> meaning, of an agent, of a stage of World Models, or of `every` agent that learns from replay."""
    meanings = metric_meanings()
    return meanings[name] if name in meanings else meanings["world_models"][name]


def written(file: Path) -> set[str]:
    return {re.sub(r"rec/.*", "rec/<key>", key) for line in read_lines(file) for key in line}


@pytest.mark.parametrize("name", names())
def test_the_list_is_what_a_run_writes(tmp_path: Path, name: str) -> None:
    agent = agent_spec(name).config(**(TINY[name] | EVERYTHING.get(name, {})))
    config = TrainConfig(agent, env="pendulum", steps=440, num_envs=2, batch_size=2, batch_length=8, prefill=400,
                         train_ratio=4, log_every=0, replay_capacity=1000, eval_every=440, eval_episodes=1)  # fmt: skip
    train(name, config, tmp_path)
    assert written(tmp_path / "metrics.jsonl") == {
        *documented("every"), *documented(name),
    }  # fmt: skip
