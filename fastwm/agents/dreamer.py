"""Common parts of Dreamer V1 and V2: an actor that learns in dreams, values that include a state's own reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastwm import ops
from fastwm.agents.results import Noise, Streams
from fastwm.agents.world import WorldAgent, WorldConfig
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.heads import Action, Actor, NormalHead, RealAction
from fastwm.nn.layers import Style
from fastwm.optim import KerasAdam
from fastwm.settings import Fraction, Layers, Positive, Range


@dataclass(kw_only=True)
class DreamerConfig(WorldConfig):
    """Actor, critic and optimisers, with the numbers of Dreamer V1."""

    actor_layers: Layers = 4
    """Hidden layers of the actor: their number, or the width of each."""
    critic_layers: Layers = 3
    """Hidden layers of the critic: their number, or the width of each."""
    imag_length: Annotated[int, Range(2, 2**16)] = 15
    """Steps of every imagined trajectory."""
    lam: Fraction = 0.95
    """Lambda of the returns: 0 bootstraps after one step, 1 at the end of the trajectory."""
    model_lr: Positive = 6e-4
    """Learning rate of the world model."""
    actor_lr: Positive = 8e-5
    """Learning rate of the actor."""
    critic_lr: Positive = 8e-5
    """Learning rate of the critic."""
    eps: Positive = 1e-7
    """Adam's epsilon, added to sqrt(v) without bias correction, as Keras does."""
    clip: Positive = 100.0
    """Largest norm of the gradient, for each optimiser separately."""
    decay: Fraction = 0.0
    """Weight decay: fraction of every weight removed per update."""


class Dreamer(WorldAgent):
    """World model, actor, critic and an optimiser for each."""

    config: DreamerConfig

    def __init__(
        self, obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]", config: DreamerConfig, kind: ops.GRURSSMKind,
        style: Style, conv: Style, real: RealAction, min_std: float, shift: float = 0.0,
    ):  # fmt: skip
        super().__init__(obs_space, act_space, config, kind, style, conv)
        c, feat = config, self.world.rssm.feat_dim
        self.actor = Actor(
            feat, c.units, c.actor_layers, self.act_space, style=style, real=real, min_std=min_std, shift=shift
        )
        self.critic = NormalHead(feat, c.units, c.critic_layers, style)
        self.reset_optimizers()

    def reset_optimizers(self) -> None:
        c = self.config
        self.model_optimizer = self.adam(self.world, c.model_lr)
        self.actor_optimizer = self.adam(self.actor, c.actor_lr)
        self.critic_optimizer = self.adam(self.critic, c.critic_lr)

    def adam(self, module: nn.Module, lr: float) -> KerasAdam:
        c = self.config
        return KerasAdam(module.parameters(), lr, c.eps, c.clip, c.decay)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": self.model_optimizer, "actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def check_finite_of(self, part: str, losses: Mapping[str, Tensor], *optimizers: KerasAdam) -> Tensor | None:
        """`FiniteCheck` of some losses and of the gradients that these optimisers have just taken."""
        params = [p for optimizer in optimizers for p in optimizer.params]
        return self.finite(self, part, losses, params, torch.cat([optimizer.norms for optimizer in optimizers]))

    def draw(self, steps: int, batch: int, streams: Streams) -> Noise:
        c, noise = self.config, super().draw(steps, batch, streams)
        starts = self.dream_starts(steps)
        noise.prior = self.latent_draw(streams)(c.imag_length, starts, batch, c.stoch).flatten(1, 2)
        action = self.actor.noise(c.imag_length, starts, batch, uniform=streams.uniform, normal=streams.normal)
        noise.action = action.flatten(1, 2)
        return noise

    def dream_starts(self, steps: int) -> int:
        """How many rows of a window of T are dreamt from."""
        return steps

    def choose(self, state: GRUState, mode: str) -> Action:
        policy = self.actor(*state.parts)
        return policy.mode() if mode == "eval" else policy.sample()

    def dream(self, start: GRUState, noise: Noise) -> tuple[GRUState, Tensor, Tensor]:
        """States 1..H [H, N, ...] dreamt from `start` [N, ...], the prior's statistics there, and the encoded actions
        that led there. The gradient goes through the dynamics to the actor.

        It has an autocast region of its own: casts cached here without gradient must not serve the losses.
        """
        horizon, count, rssm = self.config.imag_length, len(start.deter), self.world.rssm
        latent_noise = rssm.noise(horizon, count) if noise.prior is None else noise.prior
        action_noise = self.actor.noise(horizon, count, given=noise.action)
        with self.autocast():
            deter, stoch, stats, action = ops.gru_rssm_imagine(
                *start, latent_noise, action_noise, rssm.weights, rssm.kind,
                self.actor.mlp.params, self.actor.out_params, self.actor.policy_heads,
            )  # fmt: skip
        return GRUState(deter, stoch), stats, action


def flatten(state: GRUState) -> GRUState:
    """[T, B, ...] -> [T*B, ...], without gradient."""
    return GRUState(*(part.detach().flatten(0, 1) for part in state))


def before_last(state: GRUState) -> GRUState:
    """Rows 0..H-1 of [H+1, ...], without gradient."""
    return GRUState(*(part[:-1].detach() for part in state))


def lambda_targets(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """`R_k = r_k + d_k ((1 - lam) v_{k+1} + lam R_{k+1})` [K-1, N] from [K, N], with R of the last state its value.

    A state's value includes the reward for arriving there.
    """
    return ops.lambda_return(reward[:-1], discount[:-1], value[1:], lam)


def arrival_weights(discount: Tensor) -> Tensor:
    """`[1, d_0, d_0 d_1, ...]` [K, N]: how much of an imagined state is real."""
    return torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0).detach()
