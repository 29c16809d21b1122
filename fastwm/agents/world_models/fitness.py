"""Fitness of a controller, in M's dream or in the environment. Every episode has a seed of its own."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastwm import ops
from fastwm.agents.world_models.agent import WorldModels
from fastwm.agents.world_models.encode import read_latents
from fastwm.envs import make_env
from fastwm.errors import FastwmError
from fastwm.nn.conv_vae import Latent

STARTS = 1000


def first_latents(folders: list[Path], seed: int) -> tuple[Tensor, Tensor]:
    """mu and logvar of the first frames of encoded episodes, `STARTS` of them at most."""
    data = read_latents(folders)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(data["is_first"]))[:STARTS]
    return torch.from_numpy(data["mu"][rows]), torch.from_numpy(data["logvar"][rows])


class Scores(NamedTuple):
    returns: Tensor  # [P, R]
    lengths: Tensor  # [P, R]


class Fitness(Protocol):
    """Episodes of P controllers."""

    def __call__(self, vectors: Tensor, keys: Tensor, seed: int) -> Scores:
        """`vectors` [P, size], `keys` [P, R]: episodes of equal key and seed are equal, whoever else is there."""


class Dream:
    """M's dream at a temperature, begun from the first frames of real episodes."""

    def __init__(self, agent: WorldModels, mu: Tensor, logvar: Tensor, temperature: float, max_steps: int):
        if agent.config.c.hidden or agent.config.m.joint:
            raise FastwmError(
                "the dream evolves linear controllers over per-latent mixtures: "
                "set agent.c.hidden 0 and agent.m.joint False, or --agent.c.fitness real"
            )
        if not agent.rnn.heads:
            raise FastwmError("in this dream every controller scores the same: train M with --agent.m.done or .reward")
        self.agent, self.temperature, self.max_steps = agent, temperature, max_steps
        self.mu, self.logvar = mu.float().to(agent.device), logvar.float().to(agent.device)

    def starts(self, keys: Tensor, seed: int) -> Tensor:
        """A first latent for every key `[N]`: one of the stored frames, sampled."""
        stream = torch.stack([torch.full_like(keys, seed ^ 0x5EED), keys], -1)
        index = (ops.philox_uniform(stream, 1)[:, 0] * len(self.mu)).long().clamp(max=len(self.mu) - 1)
        epsilon = ops.philox_normal(stream, self.mu.shape[1], first=1)
        return Latent(self.mu[index], self.logvar[index]).sample(epsilon)

    @torch.no_grad()
    def rollouts(self, vectors: Tensor, keys: Tensor, seed: int, **options: Any) -> ops.Rollouts:
        ((weight, bias),) = self.agent.controller.split(vectors.float().to(self.agent.device))
        flat = keys.reshape(-1).to(self.agent.device)
        stream = torch.stack([torch.full_like(flat, seed), flat << 32], -1)
        rnn = self.agent.rnn
        with self.agent.autocast():
            return ops.mdn_rnn_imagine(
                self.starts(flat, seed), weight.contiguous(), bias, rnn.rollout_weights(), stream, self.max_steps,
                rnn.heads, self.temperature, self.agent.task.squash, rnn.lstm.forget_bias, **options,
            )  # fmt: skip

    def __call__(self, vectors: Tensor, keys: Tensor, seed: int) -> Scores:
        rollouts = self.rollouts(vectors, keys, seed)
        return Scores(rollouts.returns.reshape(keys.shape).cpu(), rollouts.lengths.reshape(keys.shape).cpu())


class Real:
    """The environment itself: each episode has an environment of its own, `num_envs` of them run at once.

    Episodes end after `patience` steps without a reward above 0, where that is not 0.
    """

    def __init__(
        self, agent: WorldModels, env: str, env_args: dict[str, Any], max_steps: int, num_envs: int, patience: int = 0
    ):
        self.agent, self.env, self.env_args = agent, env, env_args
        self.max_steps, self.num_envs, self.patience = max_steps, num_envs, patience or max_steps

    def __call__(self, vectors: Tensor, keys: Tensor, seed: int) -> Scores:
        owner = torch.arange(len(vectors)).repeat_interleave(keys.shape[1])
        flat = keys.reshape(-1)
        parts = [
            self.wave(vectors[owner[at : at + self.num_envs]].float(), flat[at : at + self.num_envs], seed)
            for at in range(0, len(flat), self.num_envs)
        ]
        returns, lengths = (torch.cat(x).reshape(keys.shape) for x in zip(*parts))
        return Scores(returns, lengths)

    def wave(self, vectors: Tensor, keys: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """One episode each."""
        seeds = [int(np.random.SeedSequence((seed, int(key))).generate_state(1)[0] >> 1) for key in keys]
        env = make_env(self.env, len(keys), seeds, **self.env_args)
        try:
            return self.play(env, vectors.to(self.agent.device), keys.to(self.agent.device), seed)
        except RuntimeError as error:
            raise FastwmError(f"an environment of {self.env} died: {error}; the same command goes on") from error
        finally:
            env.close()

    @torch.no_grad()
    def play(self, env: Any, vectors: Tensor, keys: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        returns, lengths = np.zeros(len(keys)), np.zeros(len(keys), np.int64)
        rewarded = np.zeros(len(keys), np.int64)
        live, record = np.arange(len(keys)), env.reset()
        h, c = self.agent.rnn.initial(len(keys))
        for step in range(self.max_steps):
            stream = torch.stack([torch.full_like(keys[live], seed), keys[live] << 32 | step], -1)
            epsilon = ops.philox_normal(stream, self.agent.config.latents)
            rows = {key: record[key][live] for key in ("image", "is_first")}
            action, state = self.agent.choose(rows, {"h": h[live], "c": c[live]}, vectors[live], epsilon)
            h[live], c[live] = state["h"], state["c"]
            chosen = self.agent.task.env_action(action).cpu()
            every = chosen.new_zeros((len(keys), *chosen.shape[1:]))
            every[live] = chosen
            record = env.step(every, live)
            returns[live] += record["reward"][live]
            lengths[live] += 1
            rewarded[record["reward"] > 0] = step
            live = live[~record["is_last"][live] & (step - rewarded[live] < self.patience)]
            if not len(live):
                break
        return torch.from_numpy(returns), torch.from_numpy(lengths)
