"""Replay numbers recorded from the official DreamerV3 code: `python -m tests.golden_dreamerv3 FILE.npz`.

A file holds a batch, the parameters before and after two updates, all noise, and every intermediate (see
`tests/golden/README.md`). Nothing is sampled here: the recorded noise goes in, everything that comes out is compared.
"""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import DreamerV3, DreamerV3Config, Noise
from fastwm.agents.dreamer_v3 import Loss
from fastwm.agents.official import from_official, load_official, official_names
from fastwm.nn.heads import Action
from fastwm.nn.spaces import SpaceDict
from tests.replaying import GRAD_TOLERANCE, VALUE_TOLERANCE, Check, main, within

PARAM_SHARE = 0.99
FLAGS = {"reward", "is_first", "is_last", "is_terminal", "consec", "stepid"}
LOSS_NAMES = {"rew": "reward", "con": "cont", "repval": "replay_value"}


class Golden:
    """One recorded file and the agent built for it."""

    def __init__(self, path: str | Path):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.config = ast.literal_eval(str(self.data["config"]))
        obs_space, act_space = self.spaces()
        self.agent = DreamerV3(obs_space, act_space, self.agent_config())
        load_official(self.agent, self.under("params0/"))

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.data.items() if key.startswith(prefix)}

    def spaces(self) -> tuple[SpaceDict, SpaceDict]:
        """Spaces as the shapes, dtypes and head names of the file tell them."""
        params, obs, act = self.under("params0/"), {}, {}
        for key, value in self.under("batch/").items():
            shape = value.shape[2:]
            if f"pol/head/{key}/logits/bias" in params:
                act[key] = discrete(shape, params[f"pol/head/{key}/logits/bias"])
            elif f"pol/head/{key}/mean/bias" in params:
                act[key] = spaces.Box(-1, 1, shape, np.float32)
            elif f"dec/vec/{key}/logits/bias" in params:
                obs[key] = discrete(shape, params[f"dec/vec/{key}/logits/bias"])
            elif f"dec/vec/{key}/pred/bias" in params:
                obs[key] = spaces.Box(-np.inf, np.inf, shape, np.float32)
            elif key not in FLAGS and not key.startswith("dyn/"):
                obs[key] = spaces.Box(0, 255, shape, np.uint8)
        return obs, act

    def agent_config(self) -> DreamerV3Config:
        get = self.config.__getitem__
        return DreamerV3Config(
            deter=get("dyn.rssm.deter"), hidden=get("dyn.rssm.hidden"), stoch=get("dyn.rssm.stoch"),
            classes=get("dyn.rssm.classes"), blocks=get("dyn.rssm.blocks"), unimix=get("dyn.rssm.unimix"),
            free_nats=get("dyn.rssm.free_nats"), prior_layers=get("dyn.rssm.imglayers"),
            post_layers=get("dyn.rssm.obslayers"), units=get("enc.simple.units"), depth=get("enc.simple.depth"),
            mults=tuple(get("enc.simple.mults")), kernel=get("enc.simple.kernel"),
            encoder_layers=get("enc.simple.layers"), decoder_layers=get("dec.simple.layers"),
            reward_layers=get("rewhead.layers"), cont_layers=get("conhead.layers"), actor_layers=get("policy.layers"),
            critic_layers=get("value.layers"), bins=get("value.bins"), rec_scale=get("loss_scales.rec"),
            reward_scale=get("loss_scales.rew"), cont_scale=get("loss_scales.con"), dyn_scale=get("loss_scales.dyn"),
            rep_scale=get("loss_scales.rep"), policy_scale=get("loss_scales.policy"),
            value_scale=get("loss_scales.value"), replay_value_scale=get("loss_scales.repval"),
            imag_length=get("imag_length"), horizon=get("horizon"), lam=get("imag_loss.lam"),
            actor_entropy=get("imag_loss.actent"), slow_reg=get("imag_loss.slowreg"), slow_rate=get("slowvalue.rate"),
            return_rate=get("retnorm.rate"), return_limit=get("retnorm.limit"), lr=get("opt.lr"),
            warmup=get("opt.warmup"), agc=get("opt.agc"), beta1=get("opt.beta1"), beta2=get("opt.beta2"),
            precision="fp32",
        )  # fmt: skip

    def batch(self) -> dict[str, Tensor]:
        """The recorded rows, time-major [1+T, B, ...]."""
        rows = {key.removeprefix("dyn/"): value for key, value in self.under("batch/").items()}
        return {key: torch.from_numpy(value).transpose(0, 1) for key, value in rows.items() if key != "stepid"}

    def rows(self, value: np.ndarray) -> Tensor:
        """[B*T, K, ...], rows flattened batch-major, to ours: [K, T*B, ...]."""
        steps = self.config["T"]
        tensor = torch.from_numpy(value)
        tensor = tensor.reshape(-1, steps, *tensor.shape[1:]).transpose(0, 1)  # [T, B, K, ...]
        return tensor.flatten(0, 1).transpose(0, 1)

    def noise(self, step: int) -> Noise:
        post = torch.from_numpy(self.data[f"step{step}/uniform/post"]).transpose(0, 1)
        action: Action = {}
        for key in self.agent.act_space:
            for kind in ("uniform", "normal"):
                if f"step{step}/{kind}/{key}" in self.data:
                    action[key] = self.rows(self.data[f"step{step}/{kind}/{key}"])
        return Noise(post, self.rows(self.data[f"step{step}/uniform/prior"]), action)

    def compare_values(self, step: int, loss: Loss) -> Iterator[Check]:
        world, dream, prefix = loss.world, loss.dream, f"step{step}/"
        ours: dict[str, Tensor] = {
            "wm/tokens": world.tokens, "wm/deter": world.state.deter, "wm/stoch": world.state.stoch,
            "wm/post_logit": world.post_stats, "wm/prior_logit": world.prior_stats,
            "replay/value/logits": loss.replay_value.logits, "replay/value/pred": loss.replay_value.mean,
            "replay/slowvalue/logits": loss.replay_slow_value.logits,
            "replay/slowvalue/pred": loss.replay_slow_value.mean, "replay/return": loss.replay_returns,
            "replay/boot": dream.returns[0].view(loss.terms["dyn"].shape),
        }  # fmt: skip
        for key, dist in world.recon.items():
            ours[f"wm/recon/{key}/mean"] = getattr(dist, "mean", None)
            ours[f"wm/recon/{key}/logits"] = getattr(dist, "log_probs", None)
        for key, term in loss.terms.items():
            ours[f"loss/{dict(map(reversed, LOSS_NAMES.items())).get(key, key.removeprefix('rec/'))}"] = term
        dreamt: dict[str, Tensor] = {
            "deter": dream.state.deter[1:], "stoch": dream.state.stoch[1:], "prior_logit": dream.prior_stats,
            "reward": dream.reward, "cont": dream.discount, "return": dream.returns,
            "value/logits": dream.value.logits, "value/pred": dream.value.mean,
            "slowvalue/logits": dream.slow_value.logits, "slowvalue/pred": dream.slow_value.mean,
            "policy_loss": dream.losses["policy"], "value_loss": dream.losses["value"],
        }  # fmt: skip
        for key, action in dream.action.items():
            dreamt[f"action/{key}"] = action
        for key, dist in dream.policy.dists.items():
            for field in ("mean", "std"):
                dreamt[f"policy/{key}/{field}"] = getattr(dist, field, None)
            dreamt[f"policy/{key}/logits"] = getattr(dist, "log_probs", None)
        for name, value in self.under(prefix).items():
            if not name.startswith(("wm/", "imag/", "replay/", "loss/", "loss_total", "state/")):
                continue
            if name == "loss_total":
                mine = loss.total
            elif name == "imag/retnorm_scale":
                mine = self.agent.return_norm.scale
            elif name in ("imag/retnorm_offset", "state/retnorm/lo/value"):
                mine = self.agent.return_norm.lo
            elif name == "state/retnorm/hi/value":
                mine = self.agent.return_norm.hi
            elif name.startswith("imag/"):
                mine, value = dreamt[name.removeprefix("imag/")], self.rows(value).numpy()
            else:
                mine, value = ours[name], np.swapaxes(value, 0, 1)
            if name.endswith("/logits") and ("policy" in name or "recon" in name):
                value = torch.log_softmax(torch.from_numpy(value), -1).numpy()
            yield within(prefix + name, mine.detach().numpy(), value, VALUE_TOLERANCE)

    def compare_grads(self, step: int) -> Iterator[Check]:
        params = dict(self.agent.named_parameters())
        recorded = self.under(f"step{step}/grad/")
        trained = {path for path, name in official_names(self.agent).items() if params[name].requires_grad}
        if missing := trained.symmetric_difference(recorded):
            yield Check(f"step{step}/grad: names differ: {sorted(missing)}", float("inf"), False)
        for path, name in official_names(self.agent).items():
            if path in recorded:
                ours = params[name].grad
                assert ours is not None
                theirs = from_official(recorded[path]).numpy()
                yield within(f"step{step}/grad/{path}", ours.numpy(), theirs, GRAD_TOLERANCE)

    def compare_params(self, step: int) -> Iterator[Check]:
        """After an update: nearly all entries within 1e-4, and none further than four learning rates.

        Where a gradient is rounding noise, LaProp turns it into a full step of either sign.
        """
        params = dict(self.agent.named_parameters())
        recorded = self.under(f"params{step + 1}/")
        for path, name in official_names(self.agent).items():
            theirs = from_official(recorded[path]).numpy()
            distance = np.abs(params[name].detach().numpy() - theirs)
            error = distance / max(np.abs(theirs).max(), 1e-30)
            label = f"params{step + 1}/{path}"
            if path.startswith("slowval/"):
                yield Check(label, float(error.max()), bool(error.max() <= VALUE_TOLERANCE))
            else:
                share = (error <= VALUE_TOLERANCE).mean()
                ok = share >= PARAM_SHARE and distance.max() <= 4 * self.config["opt.lr"]
                yield Check(label, float(np.quantile(error, PARAM_SHARE)), bool(ok))

    def replay(self) -> list[Check]:
        """Two updates, everything compared."""
        with recorded_arithmetic():
            return [check for step in range(2) for check in self.update(step)]

    def update(self, step: int) -> Iterator[Check]:
        loss = self.agent.loss(self.batch(), self.noise(step))
        self.agent.optimizer.zero_grad()
        loss.total.backward()
        yield from self.compare_values(step, loss)
        yield from self.compare_grads(step)
        self.agent.optimizer.step()
        self.agent.update_slow_critic()
        yield from self.compare_params(step)


@contextmanager
def recorded_arithmetic() -> Iterator[None]:
    """Flush subnormals to zero, as the recording (XLA on a CPU) did.

    It shows: a head's gradient of 1e-18 squares to a subnormal, and LaProp divides it by 1e-20 instead of by itself.
    The flag belongs to a thread, so there must be only one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def discrete(shape: tuple[int, ...], bias: np.ndarray) -> spaces.Space:
    count = bias.size // int(np.prod(shape))
    return spaces.MultiDiscrete(np.full(shape, count)) if shape else spaces.Discrete(count)


if __name__ == "__main__":
    sys.exit(main(lambda path: Golden(path).replay(), "DreamerV3"))
