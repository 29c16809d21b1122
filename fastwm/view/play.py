"""A world model as a game: real rows to start from, actions of the player or of the agent, imagined frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.agent import Agent
from fastwm.agents.dreamer import Dreamer
from fastwm.agents.dreamer_v3 import DreamerV3
from fastwm.agents.steps import Named, Step, imagine_step
from fastwm.agents.world_models import WorldModels
from fastwm.agents.world_models.task import LEFT, NOOP, RIGHT
from fastwm.errors import FastwmError
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.heads import Policy
from fastwm.nn.rssm import State, stoch_onehot
from fastwm.nn.spaces import classes, decode, encode, shape

Rows = Mapping[str, Tensor]
"""Real rows [T, 1, ...], each with the action chosen at it."""
HOTTEST = 10.0


@dataclass(frozen=True)
class Control:
    """One entry of the action: a choice among `classes`, or a real number in [`low`, 1] where that is 0.

    `idle` is what happens while no key is held; None keeps the last choice.
    """

    name: str
    classes: int
    idle: float | None
    low: float = -1.0


class Game:
    """Play in the model of one agent. A state is a dictionary of tensors [1, ...]; see the functions below."""

    def __init__(self, agent: Agent, step: Step):
        self.agent, self.step = agent, step

    @property
    def controls(self) -> list[Control]:
        controls = []
        for key in sorted(self.agent.act_space):
            space = self.agent.act_space[key]
            for i in range(max(1, torch.Size(shape(space)).numel())):
                name = f"{key} {i}" if shape(space) else key
                controls.append(Control(name, classes(space), None if classes(space) else 0.0))
        return controls

    def start(self, rows: Rows, at: int) -> tuple[Named, Named]:
        """The state after filtering the rows up to `at`, and what is predicted there."""
        raise NotImplementedError

    def encoded(self, values: list[float]) -> Tensor:
        """A value for each control -> the action as the model takes it [1, A].

        Raises:
            FastwmError: for another number of values, or one out of range.
        """
        controls = self.controls
        if len(values) != len(controls):
            raise FastwmError(f"expected {len(controls)} values, one for each control, got {len(values)}")
        for control, value in zip(controls, values):
            whole = not control.classes or (value == int(value) and 0 <= value < control.classes)
            if not whole or (not control.classes and not control.low <= value <= 1):
                raise FastwmError(f"the control {control.name} cannot be {value:g}")
        named, rest = {}, list(values)
        for key in sorted(self.agent.act_space):
            space = self.agent.act_space[key]
            count = max(1, torch.Size(shape(space)).numel())
            part, rest = rest[:count], rest[count:]
            dtype = torch.int64 if classes(space) else torch.float32
            named[key] = torch.tensor(part, dtype=dtype).reshape(1, *shape(space))
        return encode(self.agent.act_space, named)

    def values(self, action: Tensor) -> list[float]:
        """The inverse of `encoded`."""
        named = decode(self.agent.act_space, action)
        return [float(x) for key in sorted(named) for x in named[key].flatten()]

    def choose(self, state: Named) -> Tensor:
        """The agent's action at a state [1, A]."""
        raise NotImplementedError

    @torch.no_grad()
    def advance(self, state: Named, action: Tensor, temperature: float) -> tuple[Named, Named]:
        """The next state and what is predicted there."""
        outputs = self.step(state | {"action": action} | self.step.draw_noise(1), temperature)
        return self.carried(state, outputs), self.predictions(outputs)

    def carried(self, state: Named, outputs: Named) -> Named:
        return {key: outputs[key] for key in self.step.state}

    def predictions(self, outputs: Named) -> Named:
        """`obs/<key>`, `reward`, `value` and `end`, the probability that the episode is over."""
        shown = {key: x for key, x in outputs.items() if key.startswith("obs/") or key in ("reward", "value")}
        discount, ends = self.discount
        if ends and "cont" in outputs:
            shown["end"] = 1 - (outputs["cont"] / discount).clamp(max=1)
        return shown

    @property
    def discount(self) -> tuple[float, bool]:
        """The discount inside the predicted continuation, and whether there is such a prediction."""
        return 1.0, True


class DreamerGame(Game):
    """A game in an RSSM."""

    agent: Any
    step: Any

    @property
    def discount(self) -> tuple[float, bool]:
        learnt = isinstance(self.agent, DreamerV3) or self.agent.world.cont is not None
        return self.agent.config.discount, learnt

    @torch.no_grad()
    def start(self, rows: Rows, at: int) -> tuple[Named, Named]:
        state: Named | None = None
        if self.agent.latent_keys:  # replay keeps what was known at the first row
            latent = {
                "deter": rows["deter"][0].float(),
                "stoch": stoch_onehot(rows["stoch"][0], self.agent.config.classes),
            }
            state = latent | {"action": self.taken(rows, 0)}
        for t in range(0 if state is None else 1, at + 1):
            obs = {key: rows[key][t] for key in (*self.agent.obs_space, "is_first")}
            _, after = self.agent.act(obs, state, mode="random")
            state = after | {"action": self.taken(rows, t)}
        assert state is not None
        kept = {key: state[key] for key in self.step.state}
        return kept, self.predictions(self.step.predict(latent_of(self.agent, kept)))

    def taken(self, rows: Rows, at: int) -> Tensor:
        """The action chosen at a row, encoded."""
        return encode(self.agent.act_space, {key: rows[key][at] for key in self.agent.act_space})

    @torch.no_grad()
    def choose(self, state: Named) -> Tensor:
        latent = latent_of(self.agent, state)
        if isinstance(self.agent, DreamerV3):
            action = self.agent.actor(*latent.parts).sample()
        else:
            action = self.agent.choose(latent, "eval")
        return encode(self.agent.act_space, action)


class WorldModelsGame(Game):
    """A game in M, seen through V. What the player does is what the controller would do."""

    agent: Any

    @property
    def controls(self) -> list[Control]:
        if isinstance(self.agent.act_space["action"], spaces.Discrete):
            return [Control("move", 3, NOOP)]
        return [Control("steer", 0, 0.0), Control("gas", 0, 0.0, low=0.0), Control("brake", 0, 0.0, low=0.0)]

    def encoded(self, values: list[float]) -> Tensor:
        if isinstance(self.agent.act_space["action"], spaces.Discrete):
            super().encoded(values)
            return torch.tensor([[{NOOP: 0.0, RIGHT: 1.0, LEFT: -1.0}[int(values[0])]]])
        if len(values) != 3 or not (-1 <= values[0] <= 1 and min(values[1:]) >= 0 and max(values[1:]) <= 1):
            raise FastwmError("expected steer in [-1, 1], gas and brake in [0, 1]")
        return torch.tensor([values])

    def values(self, action: Tensor) -> list[float]:
        if isinstance(self.agent.act_space["action"], spaces.Discrete):
            return [float(self.agent.task.env_action(action)[0])]
        return [float(x) for x in action[0]]

    @torch.no_grad()
    def start(self, rows: Rows, at: int) -> tuple[Named, Named]:
        agent = self.agent
        h, c = agent.rnn.initial(1)
        for t in range(at + 1):
            z = agent.latent(agent.encode(rows["image"][t]))
            if t < at:
                h, c = agent.rnn.advance(z, rows["action"][t].float(), (h, c), rows["is_first"][t].bool())
        state = {"z": z, "h": h, "c": c, "is_first": rows["is_first"][at].bool()}
        return state, {"obs/image": agent.vae.decode(z)}

    @torch.no_grad()
    def choose(self, state: Named) -> Tensor:
        action: Tensor = self.agent.controller(state["z"], state["h"], state["c"])
        return action

    def carried(self, state: Named, outputs: Named) -> Named:
        return super().carried(state, outputs) | {"is_first": torch.zeros(1, dtype=torch.bool)}


def game_of(agent: Agent) -> Game:
    """The game in an agent's model.

    Raises:
        FastwmError: for an agent of the user's own.
    """
    step = imagine_step(agent)
    if isinstance(agent, WorldModels):
        return WorldModelsGame(agent, step)
    return DreamerGame(agent, step)


def latent_of(agent: Agent, state: Mapping[str, Tensor]) -> Any:
    """The latent of an RSSM, from a state by name."""
    return (State if isinstance(agent, DreamerV3) else GRUState)(state["deter"], state["stoch"])


@torch.no_grad()
def judgement(agent: Agent, state: Mapping[str, Tensor]) -> tuple[Policy, Tensor] | None:
    """The policy and the value at a filtered state; PlaNet and World Models have neither."""
    if not isinstance(agent, (DreamerV3, Dreamer)):
        return None
    features = latent_of(agent, state).parts
    return agent.actor(*features), agent.critic(*features).mean
