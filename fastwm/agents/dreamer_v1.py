"""Dreamer V1 (Hafner et al., ICLR 2020), in the form of the official TensorFlow 2 code.

New since PlaNet: no planner, but an actor and a critic learnt in dreams, the actor by the gradient of the dreamt return
through rewards, values and dynamics. Tensors are time-major.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from gymnasium import spaces
from torch import Tensor

from fastwm.agents.agent import WriteBack, fixed
from fastwm.agents.dreamer import Dreamer, DreamerConfig, arrival_weights, before_last, flatten, lambda_targets
from fastwm.agents.results import Dream, Noise, World
from fastwm.agents.world import ModelLoss
from fastwm.nn.distributions import normal_kl
from fastwm.nn.gru_rssm import VARIANTS, GRUState
from fastwm.nn.layers import DREAMER_V1, PLANET
from fastwm.settings import Range


@dataclass(kw_only=True)
class DreamerV1Config(DreamerConfig):
    """Every number of the agent. The defaults are the official ones of DeepMind Control."""

    action_std: Annotated[float, Range(0, 100, above=True)] = 5.0
    """Standard deviation of the untrained policy, before tanh."""


class DreamerV1(Dreamer):
    """The agent: see `DreamerV3` for the spaces it takes; images must be 64x64."""

    config: DreamerV1Config

    def __init__(
        self, obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]", config: DreamerV1Config | None = None,
    ):  # fmt: skip
        c = config or DreamerV1Config()
        shift = math.log(math.expm1(c.action_std))
        dense, conv = DREAMER_V1.normed(c.norm), PLANET.normed(c.norm)
        super().__init__(obs_space, act_space, c, VARIANTS["dreamer_v1"], dense, conv, "tanh_normal", 1e-4, shift)

    def divergence(self, world: World[GRUState]) -> Tensor:
        """Free nats on the mean of the batch."""
        kl = self.group.mean(normal_kl(world.post_stats, world.prior_stats).mean())
        return kl.clamp(min=self.config.free_nats)

    def update(
        self, batch: Mapping[str, Tensor], noise: Noise | None = None, write_back: WriteBack | None = None
    ) -> dict[str, Tensor]:
        """One step of model, actor and critic on rows 1..T of a batch [1+T, B, ...], all from the same weights."""
        self.check_update(batch)
        rows, prev_action = self.led_to(batch)
        model, dream = self.losses(rows, prev_action, noise or self.noise_of(rows))
        losses = dream.losses
        norms = {"model": self.gradient(self.model_optimizer, model.total, model.terms),
                 "actor": self.gradient(self.actor_optimizer, losses["actor"], losses, ["actor"]),
                 "critic": self.gradient(self.critic_optimizer, losses["critic"], losses, ["critic"])}  # fmt: skip
        optimizers = self.model_optimizer, self.actor_optimizer, self.critic_optimizer
        apply = self.check_finite_of("all", model.terms | dream.losses, *optimizers)
        for optimizer in optimizers:
            optimizer.step(apply=apply)
        dreamt = {"dream/reward": dream.reward, "dream/return": dream.returns, "dream/value": dream.value.mean}
        return self.metrics(model, dream.losses, norms, dreamt)

    def losses(
        self, rows: Mapping[str, Tensor], prev_action: Tensor, noise: Noise
    ) -> tuple[ModelLoss, Dream[GRUState]]:
        """The model's on rows [T, B, ...], the actor's and the critic's in dreams from its states."""
        model = self.model_loss(rows, prev_action, noise=noise)
        return model, self.behaviour(model.world.state, noise)

    def dream_starts(self, steps: int) -> int:
        return steps - 1 if self.config.predict_cont else steps

    def behaviour(self, posterior: GRUState, noise: Noise) -> Dream[GRUState]:
        """Dream from the posterior states [T, B, ...]; with a head of the continuation the last may be an end."""
        c = self.config
        if c.predict_cont:
            posterior = GRUState(*(part[:-1] for part in posterior))
        state, stats, action = self.dream(flatten(posterior), noise)
        with self.autocast(), fixed(self.world, self.critic):
            reward, value = self.world.reward(*state.parts).mean, self.critic(*state.parts)
            discount = self.world.discount_at(state)
        returns = lambda_targets(reward, discount, value.mean, c.lam)
        weight = arrival_weights(discount)[:-1]
        with self.autocast():
            judged = self.critic(*before_last(state).parts)
        losses = {"actor": -(weight * returns).mean(), "critic": (weight * judged.loss(returns.detach())).mean()}
        return Dream(state, stats, action, reward, discount, weight, value, returns, losses)
