"""One step of an agent as a plain module: it acts, or imagines what an action leads to. All noise is an input.

`fastwm export` writes these modules, `fastwm view` plays them. Every tensor has a name and a leading batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastwm.agents.agent import Agent
from fastwm.agents.dreamer import Dreamer
from fastwm.agents.dreamer_v2 import DreamerV2
from fastwm.agents.dreamer_v3 import DreamerV3
from fastwm.agents.world import WorldAgent
from fastwm.agents.world_models import WorldModels
from fastwm.errors import FastwmError
from fastwm.nn.conv_vae import SIDE
from fastwm.nn.distributions import Categorical, TwoHot, UnitNormal
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.heads import Policy
from fastwm.nn.rssm import State
from fastwm.nn.spaces import classes, encode, is_image, shape

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Input:
    """One input of a step, without its batch. `kind` is "value", or the noise to be drawn: "uniform" or "normal"."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    kind: str = "value"
    classes: int = 0
    """Integers are below this number."""

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """A random value [batch, ...]: noise, or anything that the input may be."""
        size = (batch, *self.shape)
        if self.dtype == torch.bool:
            return torch.zeros(size, dtype=torch.bool)
        if not self.dtype.is_floating_point:
            return torch.randint(self.classes, size, dtype=self.dtype, generator=generator)
        return (torch.rand if self.kind == "uniform" else torch.randn)(size, generator=generator)


class Step(nn.Module):
    """Base of the steps: `forward` takes the `inputs` by name and returns outputs by name.

    The outputs named as inputs are the `state`, to be passed to the next step.
    """

    inputs: dict[str, Input]
    state: tuple[str, ...]

    def __init__(self, agent: Any):
        super().__init__()
        self.agent = agent

    def initial(self, batch: int) -> Named:
        """The state before the first step."""
        state: Named = self.agent.initial(batch)
        return {key: state[key] for key in self.state}

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> Named:
        return {key: each.draw(batch, generator) for key, each in self.inputs.items() if each.kind != "value"}


def rssm_inputs(agent: Any, rssm: Any) -> tuple[dict[str, Input], Input]:
    """The state of an agent with an RSSM, and the noise of its latent."""
    state = {key: Input(tuple(value.shape[1:])) for key, value in agent.initial(1).items()}
    discrete = isinstance(agent, DreamerV3) or bool(rssm.kind.classes)
    return state, Input((rssm.stoch,), kind="uniform" if discrete else "normal")


def observation_inputs(agent: Agent) -> dict[str, Input]:
    inputs = {}
    for key, space in agent.obs_space.items():
        if is_image(space):
            inputs[f"obs/{key}"] = Input(shape(space), torch.uint8, classes=256)
        elif count := classes(space):
            inputs[f"obs/{key}"] = Input(shape(space), torch.int64, classes=count)
        else:
            inputs[f"obs/{key}"] = Input(shape(space))
    return inputs | {"is_first": Input((), torch.bool)}


def policy_outputs(action: Named, policy: Policy) -> Named:
    """The action, and the policy by name: probabilities, or means and deviations."""
    outputs: Named = {}
    for key, dist in policy.dists.items():
        outputs[f"action/{key}"] = action[key]
        if isinstance(dist, Categorical):
            outputs[f"probs/{key}"] = dist.probs
        else:
            outputs |= {f"mean/{key}": dist.mean, f"std/{key}": dist.std}
    return outputs


def scalar_outputs(name: str, dist: "TwoHot | UnitNormal") -> Named:
    """The mean, and the logits of a two-hot head."""
    return {name: dist.mean} | ({f"logits/{name}": dist.logits} if isinstance(dist, TwoHot) else {})


def action_noise(agent: "DreamerV3 | Dreamer") -> dict[str, Input]:
    """The draws of an action; DreamerV2 takes the mode, as in its evaluation."""
    if isinstance(agent, DreamerV2):
        return {}
    return {f"noise/{key}": Input(shape(space), kind="uniform" if classes(space) else "normal")
            for key, space in agent.act_space.items()}  # fmt: skip


class DreamerActs(Step):
    """Filter an observation and choose an action; its policy and value.

    As `act` with mode "eval"; but Dreamer V1 takes one draw, and there the likeliest of a hundred.
    """

    def __init__(self, agent: "DreamerV3 | Dreamer"):
        super().__init__(agent)
        self.rssm: Any = agent.rssm if isinstance(agent, DreamerV3) else agent.world.rssm
        state, noise = rssm_inputs(agent, self.rssm)
        self.state = tuple(state)
        self.inputs = observation_inputs(agent) | state | {"noise": noise} | action_noise(agent)

    def forward(self, given: Named) -> Named:
        agent = self.agent
        obs = {key: given[f"obs/{key}"] for key in agent.obs_space}
        if isinstance(agent, DreamerV3):
            past: Any = State(given["deter"], given["stoch"])
            tokens = agent.encoder(obs)
        else:
            past = GRUState(given["deter"], given["stoch"])
            tokens = agent.world.encoder(agent.world.prepare(obs))
        post, _ = self.rssm.observe_step(past, given["action"], tokens, given["is_first"], given["noise"])
        policy: Policy = agent.actor(*post.parts)
        if isinstance(agent, DreamerV2):
            action = policy.mode()
        else:
            action = policy.sample({key: given[f"noise/{key}"] for key in agent.act_space})
        outputs = policy_outputs(action, policy) | scalar_outputs("value", agent.critic(*post.parts))
        return outputs | {"deter": post.deter, "stoch": post.stoch, "action": encode(agent.act_space, action)}


class RSSMImagines(Step):
    """The next state by the prior after an action, and all that is predicted there.

    At a temperature other than 1 the latents are drawn from logits divided by it, or with deviations times it.
    """

    def __init__(self, agent: "DreamerV3 | WorldAgent"):
        super().__init__(agent)
        self.world: Any = agent if isinstance(agent, DreamerV3) else agent.world
        state, noise = rssm_inputs(agent, self.world.rssm)
        self.state = ("deter", "stoch")
        self.inputs = state | {"noise": noise}

    def forward(self, given: Named, temperature: float = 1.0) -> Named:
        state = self.next(given, temperature)
        return {"deter": state.deter, "stoch": state.stoch} | self.predict(state)

    def predict(self, state: "State | GRUState") -> Named:
        """Observations in their own units (images in [0, 1]), reward, continuation and value at a state [B, ...]."""
        features, official = state.parts, isinstance(state, State)  # DreamerV3's images are in [0, 1]
        outputs: Named = {"cont": self.world.cont(*features).prob if official else self.world.discount_at(state)}
        for key, dist in self.world.decoder(*features).items():
            centred = is_image(self.agent.obs_space[key]) and not official
            outputs[f"obs/{key}"] = dist.prediction + 0.5 * centred
        outputs |= scalar_outputs("reward", self.world.reward(*features))
        return outputs | (
            scalar_outputs("value", self.agent.critic(*features)) if hasattr(self.agent, "critic") else {}
        )

    def next(self, given: Named, temperature: float) -> Any:
        rssm, noise = self.world.rssm, given["noise"]
        if isinstance(self.agent, DreamerV3):
            deter = rssm.next_deter(State(given["deter"], given["stoch"]), given["action"])
            return State(deter, rssm.dist(rssm.prior_logits(deter) / temperature).onehot(noise))
        past = GRUState(given["deter"], given["stoch"])
        if not rssm.kind.classes:  # mean + std * noise
            reached, _ = rssm.open_loop(past, given["action"][None], temperature * noise[None])
            return GRUState(*(part[0] for part in reached))
        reached, logits = rssm.open_loop(past, given["action"][None], noise[None])
        if temperature == 1:
            return GRUState(*(part[0] for part in reached))
        latent = Categorical(logits[0] / temperature, rssm.kind.unimix).onehot(noise)
        return GRUState(reached.deter[0], latent)


class WorldModelsActs(Step):
    """V sees a frame 64x64, C acts, M takes in both. `action` is as M sees it, `action/action` as the environment."""

    state = ("h", "c")

    def __init__(self, agent: WorldModels):
        super().__init__(agent)
        hidden = Input((agent.rnn.hidden,))
        self.inputs = {"obs/image": Input((SIDE, SIDE, 3), torch.uint8, classes=256), "is_first": Input((), torch.bool),
                       "h": hidden, "c": hidden}  # fmt: skip
        if agent.config.sample:
            self.inputs["noise"] = Input((agent.config.latents,), kind="normal")

    def forward(self, given: Named) -> Named:
        agent, first = self.agent, given["is_first"]
        h, c = (given[key].masked_fill(first[:, None], 0) for key in "hc")
        z = agent.latent(agent.vae.encode(given["obs/image"]), given.get("noise"))
        action = agent.controller(z, h, c)
        h, c = agent.rnn.advance(z, action, (h, c), first)
        return {"action/action": agent.task.env_action(action), "action": action, "z": z, "h": h, "c": c}


class WorldModelsImagines(Step):
    """The latent that an action leads to, by M, and V's picture of it. `action` is as M sees it."""

    state = ("z", "h", "c")

    def __init__(self, agent: WorldModels):
        super().__init__(agent)
        latents, hidden = agent.config.latents, Input((agent.rnn.hidden,))
        self.inputs = {
            "z": Input((latents,)), "h": hidden, "c": hidden, "action": Input((agent.task.actions,)),
            "is_first": Input((), torch.bool),
            "uniform": Input(() if agent.rnn.head.joint else (latents,), kind="uniform"),
            "normal": Input((latents,), kind="normal"),
        }  # fmt: skip

    def initial(self, batch: int) -> Named:
        return {"z": torch.zeros(batch, self.agent.config.latents), **self.agent.initial(batch)}

    def forward(self, given: Named, temperature: float = 1.0) -> Named:
        rnn = self.agent.rnn
        prediction, (h, c) = rnn.step(given["z"], given["action"], (given["h"], given["c"]), given["is_first"])
        z = prediction.mixture.sample(temperature, given["uniform"], given["normal"])
        outputs = {"z": z, "h": h, "c": c, "obs/image": self.agent.vae.decode(z)}
        if "done" in prediction.heads:
            outputs["cont"] = torch.sigmoid(-prediction.heads["done"])
        if "reward" in prediction.heads:
            outputs["reward"] = prediction.heads["reward"]
        return outputs


def acting_step(agent: Agent) -> Step:
    """The step that acts.

    Raises:
        FastwmError: for PlaNet, which acts by a search, and for an agent of the user's own.
    """
    if isinstance(agent, WorldModels):
        return WorldModelsActs(agent).eval()
    if isinstance(agent, (DreamerV3, Dreamer)):
        return DreamerActs(agent).eval()
    raise FastwmError(f"{type(agent).__name__} has no acting step that stands alone")


def imagine_step(agent: Agent) -> Step:
    """The step that imagines.

    Raises:
        FastwmError: for an agent of the user's own.
    """
    if isinstance(agent, WorldModels):
        return WorldModelsImagines(agent).eval()
    if isinstance(agent, (DreamerV3, WorldAgent)):
        return RSSMImagines(agent).eval()
    raise FastwmError(f"{type(agent).__name__} has no imagine step that stands alone")
