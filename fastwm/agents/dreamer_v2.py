"""DreamerV2 (Hafner et al., ICLR 2021), in the form of the official code of May 2022.

New since Dreamer V1: categorical latents with a balanced KL, a LayerNorm in the GRU, a slow critic for the targets, a
policy gradient where actions are discrete, and an end of episodes that is learnt. Tensors are time-major.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from fastwm import ops
from fastwm.agents.agent import WriteBack, fixed
from fastwm.agents.dreamer import Dreamer, DreamerConfig, arrival_weights, before_last, flatten, lambda_targets
from fastwm.agents.results import Noise, ScoredDream, World
from fastwm.nn.gru_rssm import VARIANTS, GRUState
from fastwm.nn.heads import NormalHead
from fastwm.nn.layers import DREAMER_V2
from fastwm.nn.spaces import classes, decode
from fastwm.settings import Count, Fraction, Layers, Positive, Weight, Width


@dataclass(kw_only=True)
class DreamerV2Config(DreamerConfig):
    """Every number of the agent. The defaults are the official ones; `fastwm.configs` holds Atari and DMC."""

    deter: Width = 1024
    hidden: Width = 1024
    stoch: Width = 32
    classes: Width = 32
    """Classes of each latent variable."""
    depth: Width = 48
    encoder_layers: Layers = 4
    decoder_layers: Layers = 4
    reward_layers: Layers = 4
    cont_layers: Layers = 4
    actor_layers: Layers = 4
    critic_layers: Layers = 4
    free_nats: Weight = 0.0
    kl_balance: Fraction = 0.8
    """Fraction of the KL loss that trains the prior."""
    cont_scale: Weight = 1.0
    explore: Weight = 0.0
    actor_grad: Literal["auto", "reinforce", "dynamics", "both"] = "auto"
    """Gradient of the actor: `auto` is reinforce for discrete actions and dynamics for continuous ones."""
    actor_mix: Fraction = 0.1
    """Fraction of the dynamics gradient in `both`."""
    actor_entropy: Weight = 2e-3
    """Weight of the policy's entropy in the actor's objective."""
    slow_every: Count = 100
    """Updates between two copies of the critic to the slow critic."""
    slow_rate: Fraction = 1.0
    """Fraction by which the slow critic moves to the critic at a copy."""
    model_lr: Positive = 1e-4
    actor_lr: Positive = 8e-5
    critic_lr: Positive = 2e-4
    eps: Positive = 1e-5
    decay: Fraction = 1e-6
    prioritize_ends: bool = False
    """Sample the ends of episodes more often."""


class DreamerV2(Dreamer):
    """The agent: see `DreamerV3` for the spaces it takes; images must be 64x64."""

    config: DreamerV2Config
    updates: Tensor
    batch_keys = ("is_first", "is_terminal")

    def __init__(
        self, obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]", config: DreamerV2Config | None = None,
    ):  # fmt: skip
        c = config or DreamerV2Config()
        kind = VARIANTS["dreamer_v2"]._replace(classes=c.classes)
        style = DREAMER_V2.normed(c.norm)
        super().__init__(obs_space, act_space, c, kind, style, style, "trunc_normal", min_std=0.1)
        self.prioritize_ends = c.prioritize_ends
        self.slow_critic = NormalHead(self.world.rssm.feat_dim, c.units, c.critic_layers, style)
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.slow_critic.requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)
        discrete = all(classes(space) for space in self.act_space.values())
        self.actor_grad = c.actor_grad if c.actor_grad != "auto" else "reinforce" if discrete else "dynamics"

    def divergence(self, world: World[GRUState]) -> Tensor:
        """Algorithm 2 of the paper, as `ops.balanced_categorical_kl`, with free nats on the mean of the batch."""
        c = self.config
        dyn, rep = ops.categorical_kl(world.post_stats, world.prior_stats, unimix=0.0, free_nats=0.0)
        kl = self.group.mean(torch.stack([dyn.mean(), rep.mean()]))
        dyn, rep = torch.where(kl <= c.free_nats, c.free_nats, kl)  # NaN keeps its gradient
        return c.kl_balance * dyn + (1 - c.kl_balance) * rep

    def led_to(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The same, but the action that led to the window's first row is not remembered either."""
        rows, prev_action = super().led_to(batch)
        is_first = rows["is_first"].clone()
        is_first[0] = True
        return rows | {"is_first": is_first}, prev_action

    def update(
        self, batch: Mapping[str, Tensor], noise: Noise | None = None, write_back: WriteBack | None = None
    ) -> dict[str, Tensor]:
        """One step of the model on rows 1..T of a batch [1+T, B, ...], then of actor and critic in its dreams."""
        self.check_update(batch)
        rows, prev_action = self.led_to(batch)
        noise = noise or self.noise_of(rows)
        model = self.model_loss(rows, prev_action, noise=noise)
        norms = {"model": self.gradient(self.model_optimizer, model.total, model.terms)}
        model_applies = self.check_finite_of("model", model.terms, self.model_optimizer)
        self.model_optimizer.step(apply=model_applies)
        dream = self.behaviour(model.world.state, rows["is_terminal"], noise)
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            norms[name] = self.gradient(optimizer, dream.losses[name], dream.losses, [name])
        apply = self.check_finite_of("behaviour", dream.losses, self.actor_optimizer, self.critic_optimizer)
        apply = apply if model_applies is None or apply is None else apply & model_applies
        self.actor_optimizer.step(apply=apply)
        self.critic_optimizer.step(apply=apply)
        self.update_slow_critic(apply)
        dreamt = {"dream/reward": dream.reward, "dream/return": dream.returns, "dream/value": dream.slow_value.mean,
                  "entropy/policy": dream.policy.entropy()}  # fmt: skip
        return self.metrics(model, dream.losses, norms, dreamt)

    def behaviour(self, posterior: GRUState, is_terminal: Tensor, noise: Noise) -> ScoredDream[GRUState]:
        """Dream from every posterior state [T, B, ...], terminal ones included, and score actor and critic there."""
        c, start = self.config, flatten(posterior)
        with fixed(self.world), torch.set_grad_enabled(self.actor_grad != "reinforce"):
            dreamt, prior_stats, action = self.dream(start, noise)
            state = GRUState(*(torch.cat([first[None], rest]) for first, rest in zip(start, dreamt)))
            with self.autocast():
                reward, slow_value = self.world.reward(*state.parts).mean, self.slow_critic(*state.parts)
                discount = self.world.discount_at(state)
            if c.predict_cont:
                discount = torch.cat([self.world.discount_after(is_terminal).flatten()[None], discount[1:]])
            returns = lambda_targets(reward, discount, slow_value.mean, c.lam)
        weight, judged = arrival_weights(discount), before_last(state)
        with self.autocast():
            policy, value = self.actor(*judged.parts), self.critic(*judged.parts)
        # The action in state k is judged by the return of state k+1: both the first return and the last action go.
        score = policy.log_prob(decode(self.act_space, action))[:-1] * (returns[1:] - slow_value.mean[:-2]).detach()
        mix = {"reinforce": 0.0, "dynamics": 1.0, "both": c.actor_mix}[self.actor_grad]
        objective = mix * returns[1:] + (1 - mix) * score + c.actor_entropy * policy.entropy()[:-1]
        losses = {"actor": -(weight[:-2] * objective).mean(), "critic": (weight[:-1] * value.loss(returns)).mean()}
        return ScoredDream(
            state, prior_stats, action, reward, discount, weight, value, returns, losses, policy, slow_value
        )

    @torch.no_grad()
    def update_slow_critic(self, apply: Tensor | None = None) -> None:
        """Copy the critic every `slow_every` updates, wholly at the first; updates not applied do not count."""
        rate = torch.where(self.updates == 0, 1.0, self.config.slow_rate)
        rate = torch.where(self.updates % self.config.slow_every == 0, rate, 0.0)  # nothing waits for the device
        rate = rate if apply is None else torch.where(apply, rate, 0.0)
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters()):
            slow.lerp_(fast, rate)
        self.updates += 1 if apply is None else apply

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"updates": int(self.updates)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.updates.fill_(state.get("updates", 0))
