"""The agents, by the name the command line uses.

Each is an `Agent` configured by one dataclass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastwm.agents.agent import Agent
from fastwm.agents.dreamerv1 import DreamerV1, DreamerV1Config
from fastwm.agents.dreamerv2 import DreamerV2, DreamerV2Config
from fastwm.agents.dreamerv3 import DreamerV3, DreamerV3Config, Noise
from fastwm.agents.official import load_official
from fastwm.agents.planet import PlaNet, PlaNetConfig
from fastwm.agents.world_models import STAGES, WorldModels, WorldModelsConfig
from fastwm.agents.world_models.stage import Stage
from fastwm.errors import FastwmError


@dataclass(frozen=True)
class AgentSpec:
    """An agent's class, the dataclass that configures it, and its stages, where it learns in some."""

    agent: Callable[..., Agent]
    config: type[Any]
    stages: Sequence[type[Stage]] = ()


AGENTS = {
    "planet": AgentSpec(PlaNet, PlaNetConfig),
    "dreamer_v1": AgentSpec(DreamerV1, DreamerV1Config),
    "dreamer_v2": AgentSpec(DreamerV2, DreamerV2Config),
    "dreamerv3": AgentSpec(DreamerV3, DreamerV3Config),
    "world_models": AgentSpec(WorldModels, WorldModelsConfig, STAGES),
}


def agent_spec(name: str) -> AgentSpec:
    """The agent of that name; an unknown one is a `FastwmError` that lists what exists."""
    if name not in AGENTS:
        own = "; for one of your own see fastwm.train" if ":" in name or "." in name else ""
        raise FastwmError(f"unknown agent {name!r}; there is: {', '.join(AGENTS)}{own}")
    return AGENTS[name]


__all__ = [
    "AGENTS",
    "Agent",
    "AgentSpec",
    "DreamerV1",
    "DreamerV1Config",
    "DreamerV2",
    "DreamerV2Config",
    "DreamerV3",
    "DreamerV3Config",
    "Noise",
    "PlaNet",
    "PlaNetConfig",
    "WorldModels",
    "WorldModelsConfig",
    "agent_spec",
    "load_official",
]
