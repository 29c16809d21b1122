"""PlaNet's decisions: the planner of one environment, each iteration one operator call, against the loop in PyTorch."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import fastwm
from bench.conftest import Measure
from fastwm.agents import PlaNet, PlaNetConfig
from fastwm.runner.config import TrainConfig, with_presets

OBS = {"position": spaces.Box(-np.inf, np.inf, (3,), np.float32)}
ACTION = spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize("name", ["fastwm", "eager", "fastwm bf16", "eager bf16"])
@pytest.mark.parametrize("size", ["official", "cartpole_swingup"])
def test_planet_decision(measure: Measure, size: str, name: str) -> None:
    torch.manual_seed(0)
    presets = [] if size == "official" else [size]
    config = with_presets(TrainConfig(PlaNetConfig()), "planet", presets).agent
    config.precision = "bf16" if "bf16" in name else "fp32"
    agent = PlaNet(OBS, ACTION, config)
    state = agent.world.rssm.initial(1)
    c = config

    def run() -> Tensor:
        with torch.no_grad():
            if "eager" not in name:
                return agent.plan(state)
            with fastwm.backend("ref"):  # with PyTorch's own numbers, as Philox in PyTorch would hold it up
                return agent.plan(state, latent_noise=torch.randn(c.iterations, c.horizon, c.candidates, c.stoch))

    steps = c.iterations * c.horizon * c.candidates
    measure(run, group=size, variant=name, bytes_moved=4 * steps * (c.deter + 3 * c.stoch + 1))
