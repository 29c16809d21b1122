"""DreamerV3 (Hafner et al., Nature 2025), in the form of the official code of May 2026.

A world model learns to encode, predict and reconstruct what the environment shows; an actor and a critic learn only
from what the model dreams. Every equation is named in `loss`; tensors are time-major `[T, B, ...]`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastwm import ops
from fastwm.agents.agent import Agent, WriteBack, fixed
from fastwm.agents.dreamer_v3_config import DreamerV3Config
from fastwm.agents.results import Noise, ScoredDream, Streams, World
from fastwm.nn.codec import Decoder, Encoder
from fastwm.nn.distributions import Bernoulli, TwoHot
from fastwm.nn.heads import Action, Actor, BernoulliHead, Policy, TwoHotHead
from fastwm.nn.layers import RMSNorm
from fastwm.nn.normalize import PercentileNormalizer
from fastwm.nn.rssm import BlockRSSM, State, stoch_onehot
from fastwm.nn.spaces import SpaceDict, decode, encode, is_image, row_spaces, total_width
from fastwm.ops.philox import rand, randn
from fastwm.optim import LaProp, gradient_norms

LARGE = 50_000_000  # parameters


class Outlook(NamedTuple):
    """Predictions of the heads at imagined states, without gradient to the states or to the model's own heads."""

    policy: Policy
    reward: TwoHot
    cont: Bernoulli
    value: TwoHot
    slow_value: TwoHot


@dataclass
class Loss:
    """`total` is the sum of the scaled means of `terms`; the rest is what they were made of."""

    total: Tensor
    terms: dict[str, Tensor]  # [T, B], `replay_value` [T-1, B]
    world: World[State]
    dream: ScoredDream[State]
    replay_value: TwoHot
    replay_slow_value: TwoHot
    replay_returns: Tensor  # [T-1, B]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class DreamerV3(Agent):
    """The agent: world model, actor, critic, slow critic, return scale and optimiser.

    `obs_space` is a dictionary of Box, Discrete or MultiDiscrete spaces (images uint8 `[H, W, C]`); `act_space` is one
    such space or a dictionary of them. Actions are in [-1, 1] for Box spaces.

    `encoder` makes an encoder of your own from the observations' spaces: a module with `out_dim`, whose `forward` takes
    the observations by name [..., *shape], images as uint8, and returns tokens [..., out_dim], float32.
    """

    latent_keys = ("deter", "stoch")
    batch_keys = ("is_first", "is_last", "is_terminal", *latent_keys)
    capturable = True

    def __init__(
        self,
        obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]",
        config: DreamerV3Config | None = None,
        encoder: Callable[[SpaceDict], nn.Module] | None = None,
    ):
        super().__init__()
        self.config = c = config or DreamerV3Config()
        self.obs_space, self.act_space = row_spaces(obs_space, act_space, self.latent_keys)
        self.single_action = not isinstance(act_space, (Mapping, spaces.Dict))
        action_dim, stoch_dim = total_width(self.act_space), c.stoch * c.classes
        if encoder is None:
            self.encoder: Any = Encoder(self.obs_space, c.units, c.encoder_layers, c.depth, c.mults, c.kernel)
        else:
            self.encoder = encoder(self.obs_space)
        self.rssm = BlockRSSM(
            self.encoder.out_dim, action_dim, c.deter, c.hidden, c.stoch, c.classes, c.blocks, c.unimix,
            c.prior_layers, c.post_layers,
        )  # fmt: skip
        self.decoder = Decoder(
            self.obs_space, c.deter, stoch_dim, c.units, c.decoder_layers, c.depth, c.mults, c.kernel, c.blocks
        )
        feat = self.rssm.feat_dim
        self.reward = TwoHotHead(feat, c.units, c.reward_layers, c.bins)
        self.cont = BernoulliHead(feat, c.units, c.cont_layers)
        self.actor = Actor(feat, c.units, c.actor_layers, self.act_space, c.actor_outscale, c.policy_unimix)
        self.critic = TwoHotHead(feat, c.units, c.critic_layers, c.bins)
        self.slow_critic = TwoHotHead(feat, c.units, c.critic_layers, c.bins).requires_grad_(False)
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.return_norm = PercentileNormalizer(c.return_rate, c.return_limit)
        self.reset_optimizers()

    def reset_optimizers(self) -> None:
        c = self.config
        self.optimizer = LaProp(
            [p for p in self.parameters() if p.requires_grad],
            lr=c.lr, betas=(c.beta1, c.beta2), agc=c.agc, warmup=c.warmup,
        )  # fmt: skip
        parameters = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if parameters > LARGE and self.device.type == "cpu" and not torch.cuda.is_available():
            warnings.warn(
                f"DreamerV3 has {parameters:,} parameters: on a CPU an update takes minutes. DreamerV3Config() is "
                "the official size200m; size1m is DreamerV3Config(deter=512, hidden=64, classes=4, units=64, depth=4)",
                stacklevel=2,
            )

    def initial(self, batch: int) -> dict[str, Tensor]:
        """The acting state before the first observation."""
        state = self.rssm.initial(batch)
        action = state.deter.new_zeros(batch, total_width(self.act_space))
        return {"deter": state.deter, "stoch": state.stoch, "action": action}

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, Any],
        state: dict[str, Tensor] | None = None,
        mode: str = "train",
        noise: tuple[Tensor, Action] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Choose actions for observations `[B, ...]`: the keys of the spaces, and `is_first` [B] bool.

        Returns the action (a dictionary where the action space is one) and the state to pass with the next
        observation. The policy is sampled in both modes, "train" and "eval", as in the official code; actions are
        not clipped. `noise` fixes the draws: uniform [B, S], and one array for each action.
        """
        obs = self.receive(obs, state, mode)
        is_first = obs["is_first"].bool()
        state = self.initial(len(is_first)) if state is None else state
        uniform, action_noise = noise if noise is not None else (None, None)
        with self.autocast():
            past = State(state["deter"], state["stoch"])
            post, _ = self.rssm.observe_step(past, state["action"], self.encoder(obs), is_first, uniform)
            action = self.actor(*post.parts).sample(action_noise)
        if mode == "random":
            action = self.random_action(len(is_first))
        state = {"deter": post.deter, "stoch": post.stoch, "action": encode(self.act_space, action)}
        return (action["action"] if self.single_action else action), state

    def latents(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state that replay stores: deter (bfloat16 under bf16), and stoch as uint8 class indices."""
        dtype = torch.bfloat16 if self.reduced_precision else torch.float32
        return {"deter": state["deter"].detach().to(dtype), "stoch": state["stoch"].argmax(-1).to(torch.uint8)}

    def update(
        self,
        batch: Mapping[str, Tensor],
        noise: Noise | None = None,
        write_back: WriteBack | None = None,
    ) -> dict[str, Tensor]:
        """One gradient step on a batch of replayed rows `[1+T, B, ...]` (see `loss`); returns scalar metrics.

        `write_back(index, latents)` receives the fresh latents of the trained rows and their `batch["index"]`.
        """
        self.check_update(batch)
        averages = [(x, x.clone()) for x in (self.return_norm.lo, self.return_norm.hi)]
        loss = self.loss(batch, noise or self.noise_of({"is_first": batch["is_first"][1:]}))
        self.optimizer.zero_grad()
        loss.total.backward()
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        losses = {key: loss.metrics[f"loss/{key}"] for key in loss.terms}
        self.group.mean_([*(p.grad for p in params if p.grad is not None), *losses.values()])
        apply = self.finite(self, "all", losses, params, gradient_norms(params), averages)
        self.optimizer.step(apply=apply)
        self.update_slow_critic(apply)
        if write_back is not None:
            state = loss.world.state
            latents = self.latents({"deter": state.deter, "stoch": state.stoch.detach()})
            if apply is not None:
                stored = {key: batch[key][1:] for key in latents}
                if stored["stoch"].is_floating_point():
                    stored["stoch"] = stored["stoch"].argmax(-1)
                latents = {key: torch.where(apply, x, stored[key].to(x.dtype)) for key, x in latents.items()}
            write_back(batch["index"][1:], latents)
        return loss.metrics

    def draw(self, steps: int, batch: int, streams: Streams) -> Noise:
        c, horizon = self.config, self.config.imag_length
        post, prior = streams.uniform(steps, batch, c.stoch), streams.uniform(horizon, steps, batch, c.stoch)
        action = self.actor.noise(horizon + 1, steps, batch, uniform=streams.uniform, normal=streams.normal)
        return Noise(post, prior.flatten(1, 2), action.flatten(1, 2))

    @torch.no_grad()
    def update_slow_critic(self, apply: Tensor | None = None) -> None:
        """`slow <- (1 - rate) slow + rate fast`."""
        rate: Any = self.config.slow_rate if apply is None else torch.where(apply, self.config.slow_rate, 0.0)
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters()):
            slow.lerp_(fast, rate)

    def loss(self, batch: Mapping[str, Tensor], noise: Noise | None = None) -> Loss:
        """The one loss of all modules.

        `batch` holds `[1+T, B, ...]`: the observations, `reward`, `is_first`, `is_last`, `is_terminal`, the action
        chosen at each row, and the latents `deter`, `stoch`. Row 0 is context: it only gives the start state and
        the first previous action.
        """
        c, noise = self.config, noise or Noise()
        with self.autocast():
            world = self.world_model(batch, noise.post)
        dream = self.dream(world.state, noise)
        with self.autocast():
            value, slow_value = self.values(world.state)
        last, term, reward = (batch[key][1:].float() for key in ("is_last", "is_terminal", "reward"))
        boot = dream.returns[0].view_as(reward)
        # R_t = r' + live' ((1 - lam') boot' + lam' R'), where ' is the next row: an end of either kind cuts the chain.
        live, lam = (1 - term) * c.discount, (1 - last) * c.lam
        returns = ops.lambda_return(reward[1:], live[1:], boot[1:], lam[1:])
        replay_value = (1 - last[:-1]) * self.value_loss(value, slow_value, returns)
        terms = dict(world.losses)
        terms |= {key: loss.mean(0).view_as(reward) for key, loss in dream.losses.items()}
        terms["replay_value"] = replay_value
        total = torch.stack([self.scale(key) * loss.mean() for key, loss in terms.items()]).sum()
        metrics = {f"loss/{key}": loss.detach().mean() for key, loss in terms.items()} | self.metrics(world, dream)
        return Loss(total, terms, world, dream, value, slow_value, returns, metrics)

    def world_model(self, batch: Mapping[str, Tensor], uniform: Tensor | None = None) -> World[State]:
        """Filter the batch and predict all of it: reconstruction, reward, continuation and the two KL terms."""
        rows, prev_action = self.led_to(batch)
        start = State(batch["deter"][0].float(), stoch_onehot(batch["stoch"][0], self.config.classes))
        tokens = self.encoder(rows)
        state, post_logits = self.rssm.observe(start, prev_action, tokens, rows["is_first"].bool(), uniform)
        prior_logits = self.rssm.prior_logits(state.deter)
        losses = {}
        losses["dyn"], losses["rep"] = self.rssm.kl(post_logits, prior_logits, self.config.free_nats)
        recon = self.decoder(state.deter, state.stoch.flatten(-2))
        for key, dist in recon.items():
            target = rows[key] / 255 if is_image(self.obs_space[key]) else rows[key]
            loss = dist.loss(target)
            losses[f"rec/{key}"] = loss.flatten(2).sum(-1) if loss.ndim > 2 else loss
        reward, cont = self.reward(*state.parts), self.cont(*state.parts)
        losses["reward"] = reward.loss(rows["reward"])
        # The soft target puts the discount into the continuation probability.
        losses["cont"] = cont.loss((1 - rows["is_terminal"].float()) * self.config.discount)
        return World(tokens, state, post_logits, prior_logits, recon, reward, cont, losses)

    def dream(self, posterior: State, noise: Noise) -> ScoredDream[State]:
        """Imagine from every posterior state, without gradient to the model, and score actor and critic there."""
        c = self.config
        state, action, prior_logits, seen = self.rollout(posterior.detach().flatten(), noise)
        policy, value, slow_value = seen.policy, seen.value, seen.slow_value
        reward, discount, baseline = seen.reward.mean, seen.cont.prob, value.mean.detach()
        returns = ops.lambda_return(reward[1:], discount[1:], baseline[1:], c.lam)  # [H, N]
        advantage = (returns - baseline[:-1]) / self.return_norm.update(self.group.gather(returns))
        weight = discount.cumprod(0)[:-1]
        objective = policy.log_prob(action)[:-1] * advantage + c.actor_entropy * policy.entropy()[:-1]
        losses = {"policy": -weight * objective, "value": weight * self.value_loss(value, slow_value, returns)}
        return ScoredDream(
            state, prior_logits, action, reward, discount, weight, value, returns, losses, policy, slow_value
        )

    def rollout(self, start: State, noise: Noise) -> tuple[State, Action, Tensor, Outlook]:
        """States 0..H and the actions sampled at them [H+1, N, ...], the prior logits of states 1..H, and what the
        heads predict at all states."""
        c, rssm = self.config, self.rssm
        horizon, rows = c.imag_length, len(start.deter)
        uniform = rand(horizon, rows, c.stoch, device=self.device) if noise.prior is None else noise.prior
        draws = self.actor.noise(horizon + 1, rows, given=noise.action, uniform=rand, normal=randn)
        with self.autocast(), fixed(self.reward, self.cont):
            readouts = [head.params for head in (self.reward, self.cont, self.critic, self.slow_critic)]
            deter, stoch, prior_logits, encoded, outputs = ops.rssm_imagine(
                *start, uniform, draws, rssm.observe_weights(), rssm.prior_weights(),
                self.actor.params, tuple(self.actor.specs.values()), c.unimix, c.policy_unimix, RMSNorm.eps, readouts,
            )  # fmt: skip
        policy, reward, cont, value, slow_value = outputs
        outlook = Outlook(
            self.actor.dist(policy), self.reward.dist(reward), self.cont.dist(cont), self.critic.dist(value),
            self.slow_critic.dist(slow_value),
        )  # fmt: skip
        return State(deter, stoch), decode(self.act_space, encoded), prior_logits, outlook

    def values(self, state: State) -> tuple[TwoHot, TwoHot]:
        """(fast, slow) critic."""
        with torch.no_grad():
            slow = self.slow_critic(*state.parts)
        return self.critic(*state.parts), slow

    def value_loss(self, value: TwoHot, slow_value: TwoHot, returns: Tensor) -> Tensor:
        """Cross-entropy to the returns [K, ...], and to the slow critic's mean; `value` has one row more, left out."""
        padded = torch.cat([returns, torch.zeros_like(returns[:1])])
        return value.loss(padded, slow_value.mean, self.config.slow_reg)[:-1]

    @torch.no_grad()
    def metrics(self, world: World[State], dream: ScoredDream[State]) -> dict[str, Tensor]:
        """Scalars worth a plot."""
        return {
            "entropy/post": self.rssm.dist(world.post_stats).entropy().sum(-1).mean(),
            "entropy/prior": self.rssm.dist(world.prior_stats).entropy().sum(-1).mean(),
            "entropy/policy": dream.policy.entropy().mean(),
            "dream/reward": dream.reward.mean(),
            "dream/cont": dream.discount.mean(),
            "dream/return": dream.returns.mean(),
            "dream/value": dream.value.mean.mean(),
            "dream/return_scale": self.return_norm.scale,
        }

    @torch.no_grad()
    def open_loop(self, batch: Mapping[str, Tensor], context: int) -> dict[str, Tensor]:
        """Predict the rows of a batch [1+T, B, ...] after the first `context` ones from the actions alone.

        Returns the decoded observations [T, B, ...] in their own units: filtered for `context` steps, then dreamt.
        """
        with self.autocast():
            rows, actions = self.led_to(batch)
            start = State(batch["deter"][0].float(), stoch_onehot(batch["stoch"][0], self.config.classes))
            seen = {key: value[:context] for key, value in rows.items()}
            state, _ = self.rssm.observe(start, actions[:context], self.encoder(seen), seen["is_first"].bool())
            states, _ = self.rssm.open_loop(State(state.deter[-1], state.stoch[-1]), actions[context:])
            deter, stoch = (torch.cat(parts) for parts in zip(state, states))
            recon = self.decoder(deter, stoch.flatten(-2))
        return {key: dist.prediction for key, dist in recon.items()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}
