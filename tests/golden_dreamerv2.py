"""Replay numbers recorded from the official DreamerV2 code: `python -m tests.golden_dreamerv2 FILE.npz`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents.dreamer_v2 import DreamerV2, DreamerV2Config
from fastwm.agents.results import Noise, ScoredDream
from fastwm.agents.world import ModelLoss
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.spaces import SpaceDict
from fastwm.ops import categorical_entropy
from tests.replaying import VALUE_TOLERANCE, Check, KerasFile, main, time_major, within


class Golden(KerasFile):
    """One recorded file and the agent built for it."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.agent: DreamerV2 = DreamerV2(*self.spaces(), self.agent_config())
        self.agent.updates.fill_(self.config["slow_target_counter_start"])
        for name, optimizer in self.agent.optimizers().items():
            for key in ("lr", "clip"):
                optimizer.param_groups[0][key] = self.config[f"{name}_opt.{key}"]
        self.load("params0/")

    def spaces(self) -> tuple[SpaceDict, spaces.Space]:
        obs = {}
        for key in self.config["obs_keys"]:
            shape = self.data[f"batch/{key}"].shape[2:]
            image = self.data[f"batch/{key}"].dtype == np.uint8
            obs[key] = spaces.Box(0, 255, shape, np.uint8) if image else spaces.Box(-np.inf, np.inf, shape, np.float32)
        width = self.config["action_dim"]
        discrete = self.config["action_kind"] == "discrete"
        return obs, spaces.Discrete(width) if discrete else spaces.Box(-1, 1, (width,), np.float32)

    def agent_config(self) -> DreamerV2Config:
        get = self.config.__getitem__

        def head(name: str) -> tuple[int, ...]:
            return (get(f"{name}.units"),) * get(f"{name}.layers")

        parts = ("rssm", "encoder", "decoder", "reward_head", "discount_head", "actor", "critic")
        assert {get(f"{part}.act") for part in parts} == {"elu"}, "all networks have ELU"
        assert len({get(f"{part}.norm") for part in parts}) == 1, "all networks have the same norm, or none"
        assert get("encoder.cnn_depth") == get("decoder.cnn_depth"), "both image networks have one depth"
        return DreamerV2Config(
            deter=get("rssm.deter"), hidden=get("rssm.hidden"), stoch=get("rssm.stoch"), classes=get("rssm.discrete"),
            depth=get("encoder.cnn_depth"), norm=get("rssm.norm") == "layer", obs_order=tuple(get("obs_keys")),
            encoder_layers=tuple(get("encoder.mlp_layers")), decoder_layers=tuple(get("decoder.mlp_layers")),
            reward_layers=head("reward_head"), cont_layers=head("discount_head"), actor_layers=head("actor"),
            critic_layers=head("critic"), predict_cont=get("pred_discount"),
            clip_rewards=get("clip_rewards"), free_nats=get("kl.free"), kl_balance=get("kl.balance"),
            kl_scale=get("loss_scales.kl"), reward_scale=get("loss_scales.reward"),
            cont_scale=get("loss_scales.discount"), discount=get("discount"), lam=get("discount_lambda"),
            imag_length=get("imag_horizon"), actor_grad=get("actor_grad"), actor_mix=get("actor_grad_mix"),
            actor_entropy=get("actor_ent"), slow_every=get("slow_target_update"), slow_rate=get("slow_target_fraction"),
            eps=get("model_opt.eps"), decay=get("model_opt.wd"),
        )  # fmt: skip

    def batch(self) -> tuple[dict[str, Tensor], Tensor]:
        """The recorded rows and the actions that led to them, time-major."""
        rows = {key: time_major(self.tensor(f"batch/{key}")) for key in self.under("batch/")}
        return rows, rows.pop("action")

    def noise(self, step: int) -> Noise:
        prefix = f"step{step}/uniform/"
        uniform = self.tensor(prefix + "action")
        action = self.rows(uniform if uniform.ndim > 2 else uniform[..., None])
        return Noise(time_major(self.tensor(prefix + "post")), self.rows(self.tensor(prefix + "prior")), action)

    def carry(self, step: int) -> GRUState:
        return GRUState(*(self.tensor(f"step{step}/carry_in/{key}") for key in ("deter", "stoch")))

    def compare_world(self, prefix: str, loss: ModelLoss, rows: dict[str, Tensor]) -> Iterator[Check]:
        world, model = loss.world, self.agent.world
        kl = world.post_stats.softmax(-1) * (world.post_stats.log_softmax(-1) - world.prior_stats.log_softmax(-1))
        ours = {
            "wm/embed": world.tokens, "wm/feat": world.state.feat, "wm/deter": world.state.deter,
            "wm/stoch": world.state.stoch, "wm/post_logit": world.post_stats, "wm/prior_logit": world.prior_stats,
            "wm/kl": kl.sum((-1, -2)), "wm/reward_mean": world.reward.mean,
        }  # fmt: skip
        ours |= {f"wm/recon/{key}": dist.prediction for key, dist in world.recon.items()}
        ours |= {f"wm/logprob/{self.term(key)}": -value for key, value in world.losses.items()}
        if world.cont is not None:
            ours["wm/discount_logit"] = world.cont.logit
            ours["wm/target/discount"] = model.discount_after(rows["is_terminal"])
        yield from self.compare(prefix, ours, time_major)
        scalars = {f"loss/{self.term(key)}": value for key, value in loss.terms.items()} | {"loss/model": loss.total}
        for side, stats in (("post", world.post_stats), ("prior", world.prior_stats)):
            scalars[f"wm/{side}_ent_mean"] = categorical_entropy(stats, 0.0).sum(-1).mean()
        yield from self.compare(prefix, scalars)
        yield from self.compare_open_loop(prefix, world.state)

    @staticmethod
    def term(name: str) -> str:
        return {"cont": "discount"}.get(name, name.removeprefix("rec/"))

    @torch.no_grad()
    def compare_open_loop(self, prefix: str, state: GRUState) -> Iterator[Check]:
        noise = time_major(self.tensor(prefix + "uniform/openloop"))
        last = GRUState(state.deter[-1], state.stoch[-1])
        yield from self.compare(prefix + "carry_out/", last._asdict())
        dreamt, stats = self.agent.world.rssm.open_loop(last, self.batch()[1], noise)
        ours = dreamt._asdict() | {"prior_logit": stats}
        yield from self.compare(prefix + "openloop/", ours, time_major)

    def compare_dream(self, prefix: str, dream: ScoredDream) -> Iterator[Check]:
        dist = dream.policy.dists["action"]
        action = torch.cat([torch.zeros_like(dream.action[:1]), dream.action])
        ours = {
            "deter": dream.state.deter, "stoch": dream.state.stoch, "action": action, "reward": dream.reward,
            "discount": dream.discount, "weight": dream.weight, "slow_value": dream.slow_value.mean,
            "value": dream.value.mean, "target": dream.returns, "actor_entropy": dream.policy.entropy()[:-1],
        }  # fmt: skip
        ours |= {"actor_logits": dist.logits} if hasattr(dist, "logits") else {
            "actor_mean": dist.mean, "actor_std": dist.std}  # fmt: skip
        yield from self.compare(prefix + "imag/", ours, self.rows)
        yield from self.compare(prefix + "imag/", {"prior_logit": dream.prior_stats}, lambda x: self.rows(x)[1:])
        losses = {f"loss/{key}": loss for key, loss in dream.losses.items()}
        yield from self.compare(prefix, losses)

    def compare_variants(self, prefix: str, world: Any, rows: dict[str, Tensor], noise: Noise) -> Iterator[Check]:
        """The other objectives on the same samples; `both` is a mix of the two others, of opposite signs."""
        modes, losses = ("reinforce", "dynamics", "both"), []
        for mode in modes:
            self.agent.actor_grad, kept = mode, self.agent.actor_grad
            loss = self.agent.behaviour(world.state, rows["is_terminal"], noise).losses["actor"]
            self.agent.actor_optimizer.backward(loss)
            self.agent.actor_grad = kept
            losses.append(loss.item())
            yield from self.compare_grads(f"{prefix}variant/{mode}/grad/", ("actor",))
        ours, theirs = np.array(losses), np.array([self.data[f"{prefix}variant/{mode}/loss_actor"] for mode in modes])
        yield within(f"{prefix}variant/loss_actor", ours, theirs, VALUE_TOLERANCE)

    def replay(self) -> list[Check]:
        """Two updates, everything compared."""
        return [check for step in range(2) for check in self.update(step)]

    def update(self, step: int) -> Iterator[Check]:
        agent, prefix, (rows, prev_action), noise = self.agent, f"step{step}/", self.batch(), self.noise(step)
        loss = agent.model_loss(rows, prev_action, self.carry(step), noise)
        norm = agent.model_optimizer.backward(loss.total)
        yield from self.compare_world(prefix, loss, rows)
        yield from self.compare_grads(prefix + "grad/", ("world",))
        agent.model_optimizer.step()
        yield from self.compare_variants(prefix, loss.world, rows, noise)
        dream = agent.behaviour(loss.world.state, rows["is_terminal"], noise)
        norms = {"model": norm, "actor": agent.actor_optimizer.backward(dream.losses["actor"]),
                 "critic": agent.critic_optimizer.backward(dream.losses["critic"])}  # fmt: skip
        yield from self.compare_dream(prefix, dream)
        yield from self.compare_grads(prefix + "grad/", ("actor", "critic"))
        yield from self.compare(prefix + "grad_norm/", norms)
        agent.actor_optimizer.step()
        agent.critic_optimizer.step()
        agent.update_slow_critic()
        yield from self.compare_params(f"params{step + 1}/", self.config["actor_opt.lr"])


if __name__ == "__main__":
    sys.exit(main(lambda path: Golden(path).replay(), "DreamerV2"))
