"""The agents, by the name the command line uses.

Each is an `Agent` configured by one dataclass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastwm.errors import FastwmError
from fastwm.extras import needs

with needs("agents", "fastwm.agents"):
    from fastwm.agents.agent import Agent
    from fastwm.agents.dreamer_v1 import DreamerV1, DreamerV1Config
    from fastwm.agents.dreamer_v2 import DreamerV2, DreamerV2Config
    from fastwm.agents.dreamer_v3 import DreamerV3, DreamerV3Config
    from fastwm.agents.official import load_official
    from fastwm.agents.planet import PlaNet, PlaNetConfig
    from fastwm.agents.results import Noise
    from fastwm.agents.world_models import STAGES, WorldModels, WorldModelsConfig
    from fastwm.agents.world_models.stage import Stage


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
    "dreamer_v3": AgentSpec(DreamerV3, DreamerV3Config),
    "world_models": AgentSpec(WorldModels, WorldModelsConfig, STAGES),
}


def agent_name(name: str) -> str:
    """The name as `AGENTS` has it: `dreamerv3` is another spelling of `dreamer_v3`, and so for V1 and V2."""
    other = name.replace("dreamerv", "dreamer_v")
    return other if other in AGENTS else name


def agent_spec(name: str) -> AgentSpec:
    """The agent of that name; an unknown one is a `FastwmError` that lists what exists."""
    name = agent_name(name)
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
    "agent_name",
    "agent_spec",
    "load_official",
]
