"""PlaNet (Hafner et al., ICML 2019), in the form of the official code.

The first of the line: a Gaussian RSSM learnt from pixels, and no policy. Every action comes from planning in the latent
space with the cross-entropy method. Tensors are time-major.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from gymnasium import spaces
from torch import Tensor

from fastwm import ops
from fastwm.agents.agent import WriteBack
from fastwm.agents.results import Noise, Streams, World
from fastwm.agents.world import WorldAgent, WorldConfig
from fastwm.errors import FastwmError
from fastwm.nn.distributions import normal_kl
from fastwm.nn.gru_rssm import VARIANTS, GRUState
from fastwm.nn.heads import Action
from fastwm.nn.layers import PLANET
from fastwm.nn.spaces import classes, decode, total_width
from fastwm.optim import KerasAdam
from fastwm.settings import Count, Layers, Parallel, Positive, Range, Weight, Width


@dataclass(kw_only=True)
class PlaNetConfig(WorldConfig):
    """Every number of the agent. The defaults are the official ones."""

    units: Width = 300
    bits: Annotated[int, Range(1, 8)] = 5
    reward_layers: Layers = 3
    reward_scale: Weight = 10.0
    overshooting_distance: Annotated[int, Range(0, 2**16)] = 0
    """Steps of the longest open-loop prediction compared with the posterior; 0 or 1 for none."""
    overshooting_scale: Weight = 0.0
    """Weight of the latent overshooting loss."""
    horizon: Parallel = 12
    """Steps the planner looks ahead."""
    candidates: Count = 1000
    """Action sequences drawn in each iteration of the planner."""
    elites: Count = 100
    """Best candidates, to which the planner's Normal is fitted; at most `candidates`."""
    iterations: Parallel = 10
    """Iterations of the planner's cross-entropy method."""
    lr: Positive = 1e-3
    """Learning rate."""
    eps: Positive = 1e-4
    """Adam's epsilon, added to sqrt(v) without bias correction, as Keras does."""
    clip: Positive = 1000.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        self.require(self.elites <= self.candidates, "elites", f"at most candidates ({self.candidates})")


class PlaNet(WorldAgent):
    """The agent: see `DreamerV3` for the observations it takes; images must be 64x64 and actions real."""

    config: PlaNetConfig

    def __init__(
        self, obs_space: "spaces.Space | Mapping[str, spaces.Space]",
        act_space: "spaces.Space | Mapping[str, spaces.Space]", config: PlaNetConfig | None = None,
    ):  # fmt: skip
        c = config or PlaNetConfig()
        style = PLANET.normed(c.norm)
        super().__init__(obs_space, act_space, c, VARIANTS["planet"], style, style)
        if discrete := [key for key, space in self.act_space.items() if classes(space)]:
            raise FastwmError(f"planet plans with real actions only, but {', '.join(discrete)} is discrete; "
                              "use dreamer_v2 or dreamer_v3")  # fmt: skip
        self.reset_optimizers()

    def reset_optimizers(self) -> None:
        c = self.config
        self.optimizer = KerasAdam(self.world.parameters(), c.lr, c.eps, c.clip)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": self.optimizer}

    def divergence(self, world: World[GRUState]) -> Tensor:
        """Free nats for every state: no reward for being closer."""
        return (normal_kl(world.post_stats, world.prior_stats) - self.config.free_nats).clamp(min=0).mean()

    def update(
        self, batch: Mapping[str, Tensor], noise: Noise | None = None, write_back: WriteBack | None = None
    ) -> dict[str, Tensor]:
        """One gradient step of the model on rows 1..T of a batch [1+T, B, ...]."""
        self.check_update(batch)
        c = self.config
        rows, prev_action = self.led_to(batch)
        noise = noise or self.noise_of(rows)
        model = self.model_loss(rows, prev_action, noise=noise)
        if c.overshooting_distance > 1:
            model.terms["overshooting"] = self.overshooting(model.world, prev_action, rows["is_first"], noise.prior)
            model.total = model.total + c.overshooting_scale * model.terms["overshooting"]
        norm = self.gradient(self.optimizer, model.total, model.terms)
        apply = self.finite(self, "model", model.terms, self.optimizer.params, self.optimizer.norms)
        self.optimizer.step(apply=apply)
        return self.metrics(model, {}, {"model": norm}, {"dream/reward": model.world.reward.mean})

    def draw(self, steps: int, batch: int, streams: Streams) -> Noise:
        c, noise = self.config, super().draw(steps, batch, streams)
        if c.overshooting_distance > 1:
            ahead = streams.normal(c.overshooting_distance + 1, steps, batch, c.stoch)
            noise.prior = ahead.flatten(1, 2)
        return noise

    def overshooting(
        self, world: World[GRUState], prev_action: Tensor, is_first: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The divergence of predictions two to D steps ahead from what was then filtered, which gets no gradient."""
        distance = self.config.overshooting_distance
        stats, target, valid = self.overshoot(world, prev_action, is_first, distance, noise)
        excess = (normal_kl(target.detach(), stats) - self.config.free_nats).clamp(min=0)
        return torch.where(valid, excess, 0.0)[1:distance].mean()

    def overshoot(
        self, world: World[GRUState], prev_action: Tensor, is_first: Tensor, distance: int, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Roll the prior from the state before every row t through rows t..t+distance.

        Returns its statistics and the posterior's [D+1, T, B, 2S], and which of them lie within the window and the
        episode [D+1, T, B].
        """
        steps, batch = is_first.shape
        is_first = is_first.bool()

        def ahead(x: Tensor) -> Tensor:
            """[T, ...] -> [D+1, T, ...]: row t+d, zeros after the end."""
            padded = torch.cat([x, x.new_zeros(distance, *x.shape[1:])])
            return torch.stack([padded[d : d + steps] for d in range(distance + 1)])

        start = [torch.cat([torch.zeros_like(x[:1]), x[:-1]]) for x in world.state]
        start = [torch.where(is_first[..., None], 0, x).flatten(0, 1) for x in start]
        first_action = torch.where(is_first[..., None], 0, prev_action)
        actions = torch.cat([first_action[None], ahead(prev_action)[1:]])
        with self.autocast():
            _, stats = self.world.rssm.open_loop(GRUState(*start), actions.flatten(1, 2), noise)
        resets = ahead(is_first)[1:].cumsum(0) > 0
        same_episode = torch.cat([torch.ones_like(resets[:1]), ~resets])
        inside = ahead(torch.ones_like(is_first))
        return stats.unflatten(1, (steps, batch)), ahead(world.post_stats), inside & same_episode

    def choose(self, state: GRUState, mode: str) -> Action:
        return decode(self.act_space, self.plan(state)[:, 0])

    def plan(self, state: GRUState, noise: Tensor | None = None, latent_noise: Tensor | None = None) -> Tensor:
        """The best actions [B, H, A] from states [B, ...], by the rewards predicted for the states they lead to.

        `noise` [iterations, B, candidates, H, A] and `latent_noise` [iterations, H, B * candidates, S] fix the draws.
        """
        c, rssm = self.config, self.world.rssm
        # All candidates of one environment lie side by side, as do their states.
        start = GRUState(*(part.repeat_interleave(c.candidates, 0) for part in state))
        shape = (len(state.deter), c.candidates, c.horizon, total_width(self.act_space))
        if noise is None:
            noise = torch.randn(c.iterations, *shape, device=self.device)
        # Most draws are the latents': from a stream an iteration, as torch's own generator takes much longer on a CPU.
        seed = torch.randint(2**62, (1,), device=self.device)
        streams = torch.stack([seed.expand(c.iterations), torch.arange(c.iterations, device=self.device)], 1)

        def predicted_return(actions: Tensor, iteration: int) -> Tensor:
            batch = actions.flatten(0, 1).movedim(1, 0)  # [H, B * candidates, A]
            if latent_noise is None:
                latent = ops.philox_normal(streams[iteration], (*batch.shape[:2], c.stoch))
            else:
                latent = latent_noise[iteration]
            reached, _ = rssm.open_loop(start, batch.contiguous(), latent)
            return self.world.reward(*reached.parts).mean.sum(0).unflatten(0, actions.shape[:2])

        with self.autocast():
            return cross_entropy_method(predicted_return, noise, c.elites)


def cross_entropy_method(score: Callable[[Tensor, int], Tensor], noise: Tensor, elites: int) -> Tensor:
    """Search for actions in [-1, 1] of the highest score, each of B problems on its own.

    Every iteration draws candidates from a diagonal Normal, clips them, and fits the Normal to the best of them.

    Args:
        score: takes candidates `[B, J, H, A]` and the iteration's number, returns `[B, J]`.
        noise: `[I, B, J, H, A]`, standard normal; its shape says how many iterations and candidates there are.
        elites: how many of the J candidates the Normal is fitted to.

    Returns:
        The last mean `[B, H, A]`.
    """
    mean = noise.new_zeros(noise.shape[1], *noise.shape[3:])
    std = torch.ones_like(mean)
    for iteration, draws in enumerate(noise):
        actions = torch.addcmul(mean[:, None], std[:, None], draws).clamp_(-1, 1)
        best = score(actions, iteration).topk(elites, sorted=False).indices
        elite = actions[torch.arange(len(actions), device=best.device)[:, None], best]  # [B, K, H, A]
        mean = elite.mean(1)
        std = (elite.var(1, correction=0) + 1e-6).sqrt()
    return mean
