"""Replay numbers recorded from the official Dreamer V1 code: `python -m tests.golden_dreamerv1 FILE.npz`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.dreamer_v1 import DreamerV1, DreamerV1Config
from fastwm.agents.results import Dream, Noise
from fastwm.agents.world import ModelLoss
from fastwm.nn.distributions import TanhNormal, normal_kl, softplus_std
from tests.replaying import Check, KerasFile, main, time_major


class Golden(KerasFile):
    """One recorded file and the agent built for it."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        image = spaces.Box(0, 255, self.data["batch/image"].shape[2:], np.uint8)
        action = spaces.Box(-1, 1, (self.config["action_dim"],), np.float32)
        self.agent: DreamerV1 = DreamerV1({"image": image}, action, self.agent_config())
        self.load("params0/")

    def agent_config(self) -> DreamerV1Config:
        get = self.config.__getitem__
        return DreamerV1Config(
            deter=get("deter_size"), hidden=get("hidden_size"), stoch=get("stoch_size"), units=get("num_units"),
            depth=get("cnn_depth"), reward_layers=get("reward_layers"), cont_layers=get("pcont_layers"),
            actor_layers=get("actor_layers"), critic_layers=get("value_layers"), predict_cont=get("pcont"),
            clip_rewards="tanh" if get("clip_rewards") == "tanh" else "identity",
            free_nats=get("free_nats"), kl_scale=get("kl_scale"), cont_scale=get("pcont_scale"),
            discount=get("discount"), lam=get("disclam"), imag_length=get("horizon"),
            action_std=get("action_init_std"), model_lr=get("model_lr"), actor_lr=get("actor_lr"),
            critic_lr=get("value_lr"), eps=get("adam_eps"), clip=get("grad_clip"), decay=get("weight_decay"),
        )  # fmt: skip

    def batch(self) -> tuple[dict[str, Tensor], Tensor]:
        """The recorded rows and the actions that led to them, time-major."""
        rows = {key: time_major(self.tensor(f"batch/{key}")) for key in self.under("batch/")}
        rows["is_terminal"] = rows.pop("discount") == 0
        rows["is_first"] = torch.zeros_like(rows["is_terminal"])
        return rows, rows.pop("action")

    def noise(self, step: int) -> Noise:
        prefix = f"step{step}/normal/"
        dreamt = [self.rows(self.tensor(prefix + key)) for key in ("prior", "action")]
        return Noise(time_major(self.tensor(prefix + "post")), *dreamt)

    def compare_world(self, prefix: str, loss: ModelLoss, rows: dict[str, Tensor]) -> Iterator[Check]:
        world = loss.world
        ours = {
            "embed": world.tokens, "feat": world.state.feat, "deter": world.state.deter,
            "post_stoch": world.state.stoch,
            "kl": normal_kl(world.post_stats, world.prior_stats), "reward_mean": world.reward.mean,
            "recon/image": world.recon["image"].mean,
        }  # fmt: skip
        for side, stats in (("post", world.post_stats), ("prior", world.prior_stats)):
            mean, raw = stats.chunk(2, -1)
            ours |= {f"{side}_mean": mean, f"{side}_std": softplus_std(raw)}
        ours |= {f"logprob/{self.term(key)}": -value for key, value in world.losses.items()}
        if world.cont is not None:
            ours["pcont_logit"] = world.cont.logit
            ours["pcont_target"] = self.agent.world.discount_after(rows["is_terminal"])
        yield from self.compare(prefix + "wm/", ours, time_major)
        scaled = {self.term(key): value for key, value in loss.terms.items()} | {"model": loss.total}
        if "pcont" in scaled:
            scaled["pcont"] = scaled["pcont"] * self.config["pcont_scale"]
        yield from self.compare(prefix + "loss/", scaled)

    @staticmethod
    def term(name: str) -> str:
        return {"cont": "pcont", "kl": "div"}.get(name, name.removeprefix("rec/"))

    def compare_dream(self, prefix: str, dream: Dream) -> Iterator[Check]:
        mean, raw = dream.prior_stats.chunk(2, -1)
        ours = {
            "mean": mean, "std": softplus_std(raw), **dream.state._asdict(), "action": dream.action,
            "feat": dream.state.feat, "reward": dream.reward, "value": dream.value.mean,
            "pcont": dream.discount, "returns": dream.returns, "weight": dream.weight,
        }  # fmt: skip
        yield from self.compare(prefix + "imag/", ours, self.rows)
        # Row k+1 of the policy is read at imagined state k.
        dist = self.agent.actor(ours["feat"][:-1].detach()).dists["action"]
        assert isinstance(dist, TanhNormal)
        policy = {"actor_base_mean": dist.mean, "actor_base_std": dist.std}
        yield from self.compare(prefix + "imag/", policy, lambda x: self.rows(x)[1:])
        losses = {"actor": dream.losses["actor"], "value": dream.losses["critic"]}
        yield from self.compare(prefix + "loss/", losses)

    def compare_variants(
        self, prefix: str, rows: dict[str, Tensor], prev_action: Tensor, noise: Noise
    ) -> Iterator[Check]:
        """Free nats: a threshold that never acts, and one that always does."""
        for free_nats in (0, 50):
            variant = f"{prefix}variant/free_nats_{free_nats}/"
            kept, self.agent.config.free_nats = self.agent.config.free_nats, free_nats
            loss = self.agent.model_loss(rows, prev_action, noise=noise).total
            self.agent.config.free_nats = kept
            self.agent.model_optimizer.backward(loss)
            yield from self.compare(variant, {"loss_model": loss})
            yield from self.compare_grads(variant + "grad/", ("world",))

    def replay(self) -> list[Check]:
        """Two updates, everything compared."""
        return [check for step in range(2) for check in self.update(step)]

    def update(self, step: int) -> Iterator[Check]:
        agent, prefix, (rows, prev_action), noise = self.agent, f"step{step}/", self.batch(), self.noise(step)
        yield from self.compare_variants(prefix, rows, prev_action, noise)
        loss, dream = agent.losses(rows, prev_action, noise)
        norms = {"model": agent.model_optimizer.backward(loss.total),
                 "actor": agent.actor_optimizer.backward(dream.losses["actor"]),
                 "value": agent.critic_optimizer.backward(dream.losses["critic"])}  # fmt: skip
        yield from self.compare_world(prefix, loss, rows)
        yield from self.compare_dream(prefix, dream)
        yield from self.compare_grads(prefix + "grad/", ("world", "actor", "critic"))
        yield from self.compare(prefix + "grad_norm/", norms)
        for optimizer in agent.optimizers().values():
            optimizer.step()
        yield from self.compare_params(f"params{step + 1}/", self.config["actor_lr"])


if __name__ == "__main__":
    sys.exit(main(lambda path: Golden(path).replay(), "Dreamer V1"))
