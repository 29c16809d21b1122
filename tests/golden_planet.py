"""Replay numbers recorded from the official PlaNet code: `python -m tests.golden_planet FILE.npz`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.planet import PlaNet, PlaNetConfig, cross_entropy_method
from fastwm.agents.results import Noise
from fastwm.agents.world import ModelLoss
from fastwm.nn.distributions import normal_kl, softplus_std
from fastwm.nn.gru_rssm import GRUState
from tests.replaying import Check, KerasFile, main, time_major


class Golden(KerasFile):
    """One recorded file and the agent built for it: the observation is its own embedding."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.data = {key.replace("head_image/", "head_obs/"): value for key, value in self.data.items()}
        obs = spaces.Box(-np.inf, np.inf, (self.config["embed"],), np.float32)
        action = spaces.Box(-1, 1, (self.config["action_dim"],), np.float32)
        self.agent: PlaNet = PlaNet(obs, action, self.agent_config())
        self.load("params0/")

    def agent_config(self) -> PlaNetConfig:
        get = self.config.__getitem__
        return PlaNetConfig(
            deter=get("belief_size"), hidden=get("hidden"), stoch=get("state_size"), units=get("head_units"),
            encoder_layers=0, decoder_layers=get("head_layers"), reward_layers=get("head_layers"),
            free_nats=get("free_nats"), kl_scale=get("divergence_scale"), rec_scale=get("obs_scale"),
            reward_scale=get("reward_scale"), overshooting_distance=get("overshooting_distance"),
            overshooting_scale=get("overshooting_scale"), horizon=get("cem_horizon"), candidates=get("cem_amount"),
            elites=get("cem_topk"), iterations=get("cem_iterations"), lr=get("adam_lr"), eps=get("adam_eps"),
            clip=get("clip"),
        )  # fmt: skip

    def batch(self) -> tuple[dict[str, Tensor], Tensor]:
        """The recorded rows and the actions that led to them, time-major."""
        rows = {key: time_major(self.tensor(f"batch/{key}")) for key in ("obs", "reward")}
        rows["is_first"] = rows["is_terminal"] = torch.zeros_like(rows["reward"], dtype=torch.bool)
        return rows, time_major(self.tensor("batch/action"))

    def compare_world(self, prefix: str, loss: ModelLoss) -> Iterator[Check]:
        world = loss.world
        ours = {
            "post_sample": world.state.stoch, "belief": world.state.deter, "feat": world.state.feat,
            "divergence": normal_kl(world.post_stats, world.prior_stats), "obs_mean": world.recon["obs"].prediction,
            "reward_mean": world.reward.mean, "logprob/obs": -world.losses["rec/obs"],
            "logprob/reward": -world.losses["reward"],
        }  # fmt: skip
        ours |= moments("post", world.post_stats) | moments("prior", world.prior_stats)
        yield from self.compare(prefix + "wm/", ours, time_major)
        objectives = {"obs": -loss.terms["rec/obs"], "reward": -loss.terms["reward"], "divergence": loss.terms["kl"]}
        yield from self.compare(prefix + "objective/", objectives)
        yield from self.compare(prefix + "loss/", {"main": loss.total})

    def compare_overshooting(
        self, prefix: str, loss: ModelLoss, prev_action: Tensor, is_first: Tensor
    ) -> Iterator[Check]:
        """Overshooting."""

        def view(x: Tensor) -> Tensor:  # [B, T, D, ...] -> [D, T, B, ...]
            return x.movedim((0, 1, 2), (2, 1, 0))

        distance = self.config["overshooting_distance"]
        noise = view(self.tensor(prefix + "normal/overshooting")).flatten(1, 2)
        stats, target, valid = self.agent.overshoot(loss.world, prev_action, is_first, distance, noise)
        kl = torch.where(valid, normal_kl(target, stats), 0.0)
        ours = {"mask": valid, "divergence": kl}
        for side, each in (("prior", stats), ("post", target)):
            ours |= {key: torch.where(valid[..., None], value, 0.0) for key, value in moments(side, each).items()}
        yield from self.compare(prefix + "overshooting/", ours, view)
        term = self.agent.overshooting(loss.world, prev_action, is_first, noise)
        yield from self.compare(prefix + "objective/", {"overshooting": term})
        total = loss.total + self.config["overshooting_scale"] * term
        yield from self.compare(prefix + "loss/", {"with_overshooting": total})
        self.agent.optimizer.backward(total)
        yield from self.compare_grads(prefix + "variant/with_overshooting/grad/", ("world",))

    def compare_planner(self) -> Iterator[Check]:
        """Environments plan alone, Fit of the elites: two environments planned together equal two planned alone."""
        linear = {key: self.tensor(f"cem/linear/{key}") for key in ("M", "N", "goal")}

        def envs(kind: str, key: str, dim: int) -> Tensor:
            return torch.stack([self.tensor(f"cem/{kind}/env{i}/{key}") for i in range(2)], dim)

        def score(actions: Tensor, iteration: int) -> Tensor:
            x, total = envs("linear", "start/x", 0)[:, None], torch.zeros(actions.shape[:2])
            for t in range(actions.shape[2]):
                x = x @ linear["M"] + actions[:, :, t] @ linear["N"]
                total = total - (x - linear["goal"]).square().sum(-1) + 0.2 * x[..., 0]
            recorded = {"action": actions, "return": total}
            for env in range(2):
                ours = {key: value[env] for key, value in recorded.items()}
                checks.extend(self.compare(f"cem/linear/env{env}/", ours, lambda x: x[iteration]))
            return total

        checks: list[Check] = []
        plan = cross_entropy_method(score, envs("linear", "noise", 1), self.config["cem_topk"])
        yield from checks
        state = GRUState(envs("rssm", "start/belief", 0), envs("rssm", "start/sample", 0))
        noise = envs("rssm", "noise", 1)
        iterations, count, candidates, horizon = noise.shape[:4]
        still = torch.zeros(iterations, horizon, count * candidates, self.config["state_size"])
        with torch.no_grad():
            plans = {"linear": plan, "rssm": self.agent.plan(state, noise, still)}
        for kind, plan in plans.items():
            for env in range(2):
                yield from self.compare(f"cem/{kind}/env{env}/", {"plan": plan[env]})

    def replay(self) -> list[Check]:
        """The planner and two updates, everything compared."""
        return [*self.compare_planner(), *(check for step in range(2) for check in self.update(step))]

    def update(self, step: int) -> Iterator[Check]:
        agent, prefix, (rows, prev_action) = self.agent, f"step{step}/", self.batch()
        rows["obs"] = rows["obs"].clone().requires_grad_()
        loss = agent.model_loss(rows, prev_action, noise=Noise(time_major(self.tensor(prefix + "normal/post"))))
        yield from self.compare_world(prefix, loss)
        yield from self.compare_overshooting(prefix, loss, prev_action, rows["is_first"])
        norm = agent.optimizer.backward(loss.total)
        (d_tokens,) = torch.autograd.grad(loss.total, loss.world.tokens, retain_graph=True)
        yield from self.compare(prefix, {"grad_norm": norm})
        yield from self.compare(prefix + "grad/", {"embed": d_tokens}, time_major)
        yield from self.compare_grads(prefix + "grad/", ("world",))
        agent.optimizer.step()
        yield from self.compare_params(f"params{step + 1}/", self.config["adam_lr"])


def moments(side: str, stats: Tensor) -> dict[str, Tensor]:
    mean, raw = stats.chunk(2, -1)
    return {f"{side}_mean": mean, f"{side}_stddev": softplus_std(raw)}


if __name__ == "__main__":
    sys.exit(main(lambda path: Golden(path).replay(), "PlaNet"))
