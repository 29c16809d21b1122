"""The agents, by the name the command line uses.

Each is an `Agent` configured by one dataclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastwm.agents.agent import Agent
from fastwm.agents.dreamerv3 import DreamerV3, DreamerV3Config, Noise
from fastwm.agents.official import load_official
from fastwm.errors import FastwmError


@dataclass(frozen=True)
class AgentSpec:
    """An agent's class and the dataclass that configures it."""

    agent: Callable[..., Agent]
    config: type[Any]


AGENTS = {"dreamerv3": AgentSpec(DreamerV3, DreamerV3Config)}


def agent_spec(name: str) -> AgentSpec:
    """The agent of that name; an unknown one is a `FastwmError` that lists what exists."""
    if name not in AGENTS:
        raise FastwmError(f"unknown agent {name!r}; there is: {', '.join(AGENTS)}")
    return AGENTS[name]


__all__ = ["AGENTS", "Agent", "AgentSpec", "DreamerV3", "DreamerV3Config", "Noise", "agent_spec", "load_official"]
