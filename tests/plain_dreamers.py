"""Updates of DreamerV2 and Dreamer V1 by the papers' equations, in plain PyTorch and float64, in the golden format.

They write files of configurations that no recording has: heads of unlike widths, squashed rewards, observations in any
order. Everything here is written out from the equations; of fastwm nothing is used. Layout and names: README.md in
`tests/golden`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]
SQUASH = {"tanh": torch.tanh, "none": lambda x: x, "identity": lambda x: x}


class PlainDreamer:
    """Named parameters, what is recorded, and the parts that both agents have."""

    groups: ClassVar[dict[str, tuple[str, ...]]]
    """What each optimiser trains, by the first part of the names."""

    def __init__(self, config: dict[str, Any], seed: int = 0):
        self.config, self.out = config, {}
        self.random = torch.Generator().manual_seed(seed)
        self.params: Params = {}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps = dict.fromkeys(self.groups, 0)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return 0.05 + 0.9 * torch.rand(*shape, generator=self.random, dtype=torch.float64)

    def record(self, prefix: str, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            array = value.detach().numpy().copy()
            self.out[prefix + name] = array.astype(np.float32) if array.dtype == np.float64 else array

    def write(self, path: Path) -> None:
        np.savez(path, config=np.array(repr(self.config)), **self.out)

    def parameter(self, name: str, *shape: int, scale: float | None = None) -> None:
        fan_in = math.prod(shape[:-1]) or 1
        self.params[name] = ((scale or 1 / math.sqrt(fan_in)) * self.draw(*shape)).requires_grad_()

    def layer(self, name: str, *shape: int) -> int:
        """Kernel and bias; returns the outputs."""
        self.parameter(f"{name}/kernel", *shape)
        self.parameter(f"{name}/bias", shape[-1], scale=0.1)
        return shape[-1]

    def deconv(self, name: str, kernel: int, outputs: int, inputs: int) -> None:
        self.parameter(f"{name}/kernel", kernel, kernel, outputs, inputs, scale=1 / math.sqrt(4 * inputs))
        self.parameter(f"{name}/bias", outputs, scale=0.1)

    def mlp_layers(self, name: str, inputs: int, widths: Iterable[int]) -> int:
        for i, width in enumerate(widths):
            inputs = self.layer(name.format(i), inputs, width)
        return inputs

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.params[f"{name}/kernel"] + self.params[f"{name}/bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """ELU layers under `name`, as many as there are."""
        i = 0
        while f"{name.format(i)}/kernel" in self.params:
            x, i = F.elu(self.dense(name.format(i), x)), i + 1
        return x

    def conv(self, name: str, x: Tensor) -> Tensor:
        """Stride 2, channels first."""
        kernel, bias = self.params[f"{name}/kernel"].permute(3, 2, 0, 1).contiguous(), self.params[f"{name}/bias"]
        return F.conv2d(x, kernel, bias, 2)

    def conv_transpose(self, name: str, x: Tensor) -> Tensor:
        kernel, bias = self.params[f"{name}/kernel"].permute(3, 2, 0, 1).contiguous(), self.params[f"{name}/bias"]
        return F.conv_transpose2d(x, kernel, bias, 2)

    def of(self, group: str) -> Params:
        return {name: p for name, p in self.params.items() if name.split("/")[0] in self.groups[group]}

    def gradients(self, prefix: str, loss: Tensor, group: str) -> Params:
        params = self.of(group)
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True)
        result = dict(zip(params, grads))
        self.record(prefix, result)
        return result

    def norm(self, grads: Params) -> Tensor:
        return torch.sqrt(sum(((g**2).sum() for g in grads.values()), torch.zeros((), dtype=torch.float64)))

    def adam(self, group: str, grads: Params, lr: float, eps: float, clip: float, decay: float) -> None:
        """Clip by the norm of all, shrink every weight, and Adam without a bias correction of eps."""
        scale = clip / max(clip, float(self.norm(grads)))
        self.steps[group] += 1
        t = self.steps[group]
        for name, grad in grads.items():
            m, v = self.moments.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
            m, v = 0.9 * m + 0.1 * scale * grad, 0.999 * v + 0.001 * (scale * grad) ** 2
            self.moments[name] = m, v
            rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            moved = (1 - decay) * self.params[name].detach() - rate * m / (v.sqrt() + eps)
            self.params[name] = moved.requires_grad_()


def normal_log_prob(x: Tensor, mean: Tensor, std: Any = 1.0, dims: int = 0) -> Tensor:
    """ln N(x; mean, std), summed over the last axes."""
    std = torch.as_tensor(std, dtype=x.dtype)
    value = -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    return value.flatten(value.ndim - dims).sum(-1) if dims else value


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """R_k = r_k + d_k ((1 - lam) v_{k+1} + lam R_{k+1}), R of the last its value; [K, N] -> [K - 1, N]."""
    returns, last = [], value[-1]
    for k in reversed(range(len(reward) - 1)):
        last = reward[k] + discount[k] * ((1 - lam) * value[k + 1] + lam * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def arrival(discount: Tensor) -> Tensor:
    """Cumulative product of [1, d_0, d_1, ...]."""
    return torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0).detach()


def onehot_sample(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Straight-through one-hots by the inverse CDF; also the middle of the chosen interval, which rounding spares."""
    probs = logits.softmax(-1)
    upper = probs.cumsum(-1)
    index = (upper < uniform[..., None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    onehot = F.one_hot(index, logits.shape[-1]).to(probs.dtype)
    middle = ((upper - probs / 2) * onehot).sum(-1).detach()
    return onehot + probs - probs.detach(), middle


class PlainDreamerV2(PlainDreamer):
    groups: ClassVar = {
        "model": ("encoder", "rssm", "decoder", "reward", "discount"),
        "actor": ("actor",),
        "critic": ("critic",),
    }

    def __init__(self, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]):
        """`shapes` has the observations in the order of `obs_keys`."""
        super().__init__(config)
        self.shapes = {key: shapes[key] for key in config["obs_keys"]}
        self.images = [key for key, shape in self.shapes.items() if len(shape) == 3]
        self.vectors = [key for key, shape in self.shapes.items() if len(shape) == 1]
        c = config
        D, U, S, C = (c[f"rssm.{key}"] for key in ("deter", "hidden", "stoch", "discrete"))
        channels, embed = sum(self.shapes[key][2] for key in self.images), 0
        if self.images:
            for i in range(4):
                channels = self.layer(f"encoder/conv{i}", 4, 4, channels, 2**i * c["encoder.cnn_depth"])
            embed = 4 * channels
        embed += self.mlp_layers(
            "encoder/dense{}", sum(self.shapes[key][0] for key in self.vectors), c["encoder.mlp_layers"]
        )
        self.layer("rssm/img_in", S * C + c["action_dim"], U)
        self.layer("rssm/cell/layer", U + D, 3 * D)
        self.parameter("rssm/cell/norm/gamma", 3 * D)
        self.parameter("rssm/cell/norm/beta", 3 * D)
        for name, inputs in (("img_out_0", D), ("obs_out", D + embed)):
            self.layer(f"rssm/{name}", inputs, U)
            self.layer(f"rssm/{name.replace('out', 'dist')}", U, S * C)
        feat = S * C + D
        if self.images:
            depth = c["decoder.cnn_depth"]
            widths = [self.layer("decoder/convin", feat, 32 * depth), 4 * depth, 2 * depth, depth]
            widths.append(sum(self.shapes[key][2] for key in self.images))
            for i, kernel in enumerate((5, 5, 6, 6)):
                self.deconv(f"decoder/conv{i}", kernel, widths[i + 1], widths[i])
        last = self.mlp_layers("decoder/dense{}", feat, c["decoder.mlp_layers"])
        for key in self.vectors:
            self.layer(f"decoder/dense_{key}/out", last, *self.shapes[key])
        heads = {"reward": "reward_head", "discount": "discount_head", "critic": "critic", "target_critic": "critic"}
        for name, part in heads.items():
            if name != "discount" or c["pred_discount"]:
                last = self.mlp_layers(name + "/dense{}", feat, c[f"{part}.layers"] * [c[f"{part}.units"]])
                self.layer(f"{name}/out/out", last, 1)
        last = self.mlp_layers("actor/dense{}", feat, c["actor.layers"] * [c["actor.units"]])
        self.layer("actor/out/out", last, c["action_dim"])
        if c["action_kind"] == "continuous":
            self.layer("actor/out/std", last, c["action_dim"])

    def head(self, name: str, feat: Tensor) -> Tensor:
        return self.dense(f"{name}/out/out", self.mlp(name + "/dense{}", feat))[..., 0]

    def feat(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([state[1].flatten(-2), state[0]], -1)

    def next_deter(self, state: tuple[Tensor, Tensor], action: Tensor) -> Tensor:
        deter, stoch = state
        x = F.elu(self.dense("rssm/img_in", torch.cat([stoch.flatten(-2), action], -1)))
        parts = self.dense("rssm/cell/layer", torch.cat([x, deter], -1))
        norm = (self.params[f"rssm/cell/norm/{name}"] for name in ("gamma", "beta"))
        reset, candidate, update = F.layer_norm(parts, parts.shape[-1:], *norm, 1e-3).chunk(3, -1)
        update = torch.sigmoid(update - 1)
        return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter

    def logits(self, name: str, x: Tensor) -> Tensor:
        c = self.config
        x = self.dense(f"rssm/{name.replace('out', 'dist')}", F.elu(self.dense(f"rssm/{name}", x)))
        return x.unflatten(-1, (c["rssm.stoch"], c["rssm.discrete"]))

    def prior_step(self, state: Any, action: Tensor, uniform: Tensor) -> tuple[Any, Tensor, Tensor]:
        deter = self.next_deter(state, action)
        logits = self.logits("img_out_0", deter)
        stoch, middle = onehot_sample(logits, uniform)
        return (deter, stoch), logits, middle

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        tokens = []
        if self.images:
            x = torch.cat([obs[key] for key in self.images], -1).flatten(0, 1).movedim(-1, 1)
            for i in range(4):
                x = F.elu(self.conv(f"encoder/conv{i}", x))
            tokens.append(x.movedim(1, -1).flatten(1).unflatten(0, obs["reward"].shape))
        tokens.append(self.mlp("encoder/dense{}", torch.cat([obs[key] for key in self.vectors], -1)))
        return torch.cat(tokens, -1)

    def decode(self, feat: Tensor) -> dict[str, Tensor]:
        means = {}
        if self.images:
            x = self.dense("decoder/convin", feat.flatten(0, 1))[..., None, None]
            for i in range(4):
                x = self.conv_transpose(f"decoder/conv{i}", x if i == 0 else F.elu(x))
            x = x.movedim(1, -1).unflatten(0, feat.shape[:2])
            means |= dict(zip(self.images, x.split([self.shapes[key][2] for key in self.images], -1)))
        hidden = self.mlp("decoder/dense{}", feat)
        return means | {key: self.dense(f"decoder/dense_{key}/out", hidden) for key in self.vectors}

    def policy(self, feat: Tensor) -> dict[str, Tensor]:
        x = self.mlp("actor/dense{}", feat)
        out = self.dense("actor/out/out", x)
        if self.config["action_kind"] == "discrete":
            return {"logits": out}
        return {"mean": torch.tanh(out), "std": 2 * torch.sigmoid(self.dense("actor/out/std", x) / 2) + 0.1}

    def act(self, policy: dict[str, Tensor], uniform: Tensor) -> tuple[Tensor, Tensor]:
        if "logits" in policy:
            return onehot_sample(policy["logits"], uniform)
        mean, std = policy["mean"], policy["std"]
        low, high = torch.special.ndtr((-1 - mean) / std), torch.special.ndtr((1 - mean) / std)
        noise = torch.special.ndtri(low + uniform * (high - low)).detach()  # the limits count as fixed
        return mean + std * noise, uniform

    @staticmethod
    def score(policy: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy."""
        if "logits" in policy:
            logs = policy["logits"].log_softmax(-1)
            return (logs * action.detach()).sum(-1), -(logs.exp() * logs).sum(-1)
        mean, std = policy["mean"], policy["std"]
        low, high = (-1 - mean) / std, (1 - mean) / std
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        density = [torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) for x in (low, high)]
        entropy = torch.log(std * mass) + 0.5 * math.log(2 * math.pi * math.e)
        entropy = entropy + 0.5 * (low * density[0] - high * density[1]) / mass
        return (normal_log_prob(action, mean, std) - mass.log()).sum(-1), entropy.sum(-1)

    def batch(self) -> dict[str, Tensor]:
        c = self.config
        B, T, A = c["B"], c["T"], c["action_dim"]
        rows: dict[str, Tensor] = {}
        for key, shape in self.shapes.items():
            image = torch.randint(256, (B, T, *shape), generator=self.random, dtype=torch.uint8)
            rows[key] = image if len(shape) == 3 else self.draw(B, T, *shape)
        index = torch.randint(A, (B, T), generator=self.random)
        discrete = c["action_kind"] == "discrete"
        rows["action"] = F.one_hot(index, A).double() if discrete else torch.tanh(self.draw(B, T, A))
        rows["reward"] = 2 * self.draw(B, T)
        flags = {key: torch.zeros(B, T, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
        flags["is_first"][0, 0] = flags["is_first"][0, 3] = True
        flags["is_last"][0, 2] = flags["is_terminal"][0, 2] = True
        return rows | flags

    def run(self) -> None:
        c = self.config
        batch = self.batch()
        self.record("batch/", batch)
        self.record("params0/", self.params)
        D, S, C = (c[f"rssm.{key}"] for key in ("deter", "stoch", "discrete"))
        start = torch.tanh(self.draw(c["B"], D)), onehot_sample(self.draw(c["B"], S, C), self.uniform(c["B"], S))[0]
        counter = c["slow_target_counter_start"]
        for step in range(2):
            prefix = f"step{step}/"
            self.record(prefix + "carry_in/", dict(zip(("deter", "stoch"), start)))
            start = self.update(prefix, batch, start)
            if counter % c["slow_target_update"] == 0:
                for name in [name for name in self.params if name.startswith("target_critic")]:
                    fast, slow = self.params[name.removeprefix("target_")], self.params[name]
                    self.params[name] = torch.lerp(slow, fast, c["slow_target_fraction"]).detach().requires_grad_()
            counter += 1
            self.record(f"params{step + 1}/", self.params)

    def update(self, prefix: str, batch: Mapping[str, Tensor], start: Any) -> Any:
        model, states, out = self.world(prefix, batch, start)
        grads = {"model": self.gradients(prefix + "grad/", model, "model")}
        self.optimise("model", grads["model"])
        actor, critic = self.behaviour(prefix, batch, states)
        grads["actor"] = self.gradients(prefix + "grad/", actor, "actor")
        grads["critic"] = self.gradients(prefix + "grad/", critic, "critic")
        self.record(prefix + "grad_norm/", {name: self.norm(each) for name, each in grads.items()})
        for name in ("actor", "critic"):
            self.optimise(name, grads[name])
        return out

    def optimise(self, name: str, grads: Params) -> None:
        lr, eps, clip, decay = (self.config[f"{name}_opt.{key}"] for key in ("lr", "eps", "clip", "wd"))
        self.adam(name, grads, lr, eps, clip, decay)

    def world(self, prefix: str, batch: Mapping[str, Tensor], start: Any) -> tuple[Tensor, Any, Any]:
        c, scales = self.config, {}
        obs = {key: batch[key] / 255 - 0.5 if key in self.images else batch[key] for key in self.shapes}
        obs = {key: x.double() for key, x in obs.items()} | {"reward": SQUASH[c["clip_rewards"]](batch["reward"])}
        embed = self.encode(obs)
        uniform, state = self.uniform(c["B"], c["T"], c["rssm.stoch"]), start
        deters, stochs, posts = [], [], []
        for t in range(c["T"]):
            keep = 1 - batch["is_first"][:, t].double()[:, None]
            deter = self.next_deter((state[0] * keep, state[1] * keep[..., None]), batch["action"][:, t] * keep)
            logits = self.logits("obs_out", torch.cat([deter, embed[:, t]], -1))
            stoch, uniform[:, t] = onehot_sample(logits, uniform[:, t])
            state = deter, stoch
            for values, value in ((deters, deter), (stochs, stoch), (posts, logits)):
                values.append(value)
        deter, stoch, post = (torch.stack(values, 1) for values in (deters, stochs, posts))
        prior, feat = self.logits("img_out_0", deter), self.feat((deter, stoch))
        means, reward = self.decode(feat), self.head("reward", feat)
        like = {key: normal_log_prob(obs[key], mean, dims=len(self.shapes[key])) for key, mean in means.items()}
        like["reward"] = normal_log_prob(obs["reward"], reward)
        values = {
            "embed": embed,
            "feat": feat,
            "deter": deter,
            "stoch": stoch,
            "post_logit": post,
            "prior_logit": prior,
        }
        if c["pred_discount"]:
            logit, target = self.head("discount", feat), c["discount"] * (1 - batch["is_terminal"].double())
            like["discount"] = target * F.logsigmoid(logit) + (1 - target) * F.logsigmoid(-logit)
            values |= {"discount_logit": logit, "target/discount": target}
        kl = divergence(post, prior)
        balance, free = c["kl.balance"], torch.tensor(c["kl.free"], dtype=torch.float64)
        losses = {
            "kl": (1 - balance) * torch.maximum(divergence(post, prior.detach()).mean(), free)
            + balance * torch.maximum(divergence(post.detach(), prior).mean(), free)
        } | {key: -value.mean() for key, value in like.items()}
        scales = {key: c.get(f"loss_scales.{key}", 1.0) for key in losses}
        total = sum((scales[key] * loss for key, loss in losses.items()), torch.zeros((), dtype=torch.float64))
        values |= {"kl": kl, "reward_mean": reward, **{f"recon/{key}": mean for key, mean in means.items()}}
        values |= {f"logprob/{key}": value for key, value in like.items()}
        values |= {f"{side}_ent_mean": entropy(x).mean() for side, x in (("post", post), ("prior", prior))}
        self.record(prefix + "wm/", values)
        self.record(prefix + "uniform/", {"post": uniform})
        self.record(prefix + "loss/", losses | {"model": total})
        out = tuple(x.detach() for x in state)
        self.record(prefix + "carry_out/", dict(zip(("deter", "stoch"), out)))
        self.open_loop(prefix, batch["action"], out)
        return total, (deter.detach(), stoch.detach()), out

    def open_loop(self, prefix: str, action: Tensor, state: Any) -> None:
        uniform, values = self.uniform(*action.shape[:2], self.config["rssm.stoch"]), []
        for t in range(action.shape[1]):
            state, logits, uniform[:, t] = self.prior_step(state, action[:, t], uniform[:, t])
            values.append((*state, logits))
        self.record(prefix + "uniform/", {"openloop": uniform})
        stacked = (torch.stack(each, 1) for each in zip(*values))
        self.record(prefix + "openloop/", dict(zip(("deter", "stoch", "prior_logit"), stacked)))

    def behaviour(self, prefix: str, batch: Mapping[str, Tensor], states: Any) -> tuple[Tensor, Tensor]:
        c = self.config
        state = tuple(x.flatten(0, 1) for x in states)  # [B*T, ...]
        N, H, A = len(state[0]), c["imag_horizon"], c["action_dim"]
        discrete = c["action_kind"] == "discrete"
        prior_uniform, action_uniform = self.uniform(H, N, c["rssm.stoch"]), self.uniform(H, N, *[A] * (not discrete))
        trail, actions, logits = [state], [], [torch.zeros_like(state[1])]
        for k in range(H):
            policy = self.policy(self.feat(state).detach())
            action, action_uniform[k] = self.act(policy, action_uniform[k])
            state, prior, prior_uniform[k] = self.prior_step(state, action, prior_uniform[k])
            trail.append(state)
            actions.append(action)
            logits.append(prior)
        deter, stoch = (torch.stack(each) for each in zip(*trail))
        action, feat = torch.stack(actions), self.feat((deter, stoch))
        reward, slow = self.head("reward", feat), self.head("target_critic", feat)
        discount = torch.full_like(reward, c["discount"])
        if c["pred_discount"]:
            first = c["discount"] * (1 - batch["is_terminal"].double()).flatten()
            discount = torch.cat([first[None], torch.sigmoid(self.head("discount", feat))[1:]])
        weight, target = arrival(discount), lambda_returns(reward, discount, slow, c["discount_lambda"])
        judged = feat[:-1].detach()
        policy, value = self.policy(judged), self.head("critic", judged)
        advantage, mix = (target[1:] - slow[:-2]).detach(), c["actor_grad_mix"]
        log_prob, ent = self.score(policy, action.detach())
        through_action, _ = self.score(policy, action)  # the official mix does not stop a real action's gradient
        objectives = {
            "reinforce": log_prob[:-1] * advantage,
            "dynamics": target[1:],
            "both": mix * target[1:] + (1 - mix) * through_action[:-1] * advantage,
        }
        losses = {
            mode: -(weight[:-2] * (objective + c["actor_ent"] * ent[:-1])).mean()
            for mode, objective in objectives.items()
        }
        for mode, loss in losses.items():
            self.record(f"{prefix}variant/{mode}/", {"loss_actor": loss})
            self.gradients(f"{prefix}variant/{mode}/grad/", loss, "actor")
        actor, critic = losses[c["actor_grad"]], -(weight[:-1] * normal_log_prob(target.detach(), value)).mean()
        self.record(prefix + "loss/", {"actor": actor, "critic": critic})
        self.record(prefix + "uniform/", {"prior": prior_uniform, "action": action_uniform})
        values = {
            "deter": deter, "stoch": stoch, "action": torch.cat([torch.zeros_like(action[:1]), action]),
            "reward": reward, "discount": discount, "weight": weight, "slow_value": slow, "value": value,
            "target": target, "actor_entropy": ent[:-1], "prior_logit": torch.stack(logits),
        }  # fmt: skip
        self.record(prefix + "imag/", values | {f"actor_{key}": x for key, x in policy.items()})
        return actor, critic


def divergence(post: Tensor, prior: Tensor) -> Tensor:
    """KL of one-hots, summed over the latents."""
    return (post.softmax(-1) * (post.log_softmax(-1) - prior.log_softmax(-1))).sum((-1, -2))


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum((-1, -2))


V2: dict[str, Any] = {
    "B": 2, "T": 5, "action_kind": "discrete", "action_dim": 3, "obs_keys": ["vel", "photo", "pos", "image"],
    "slow_target_counter_start": 1, "clip_rewards": "tanh", "pred_discount": True, "rssm.hidden": 9, "rssm.deter": 12,
    "rssm.stoch": 3, "rssm.discrete": 4, "encoder.cnn_depth": 1, "encoder.mlp_layers": (10, 6), "decoder.cnn_depth": 1,
    "decoder.mlp_layers": (7, 12, 9), "reward_head.layers": 1, "reward_head.units": 11, "discount_head.layers": 3,
    "discount_head.units": 5, "actor.layers": 2, "actor.units": 13, "critic.layers": 1, "critic.units": 8,
    "loss_scales.kl": 0.5, "loss_scales.reward": 1.0, "loss_scales.discount": 2.0, "kl.free": 0.0, "kl.balance": 0.8,
    "model_opt.lr": 1e-3, "model_opt.eps": 1e-5, "model_opt.clip": 100, "model_opt.wd": 1e-3, "actor_opt.lr": 8e-4,
    "actor_opt.eps": 1e-5, "actor_opt.clip": 100, "actor_opt.wd": 1e-3, "critic_opt.lr": 2e-3, "critic_opt.eps": 1e-5,
    "critic_opt.clip": 100, "critic_opt.wd": 1e-3, "discount": 0.97, "discount_lambda": 0.95, "imag_horizon": 4,
    "actor_grad": "reinforce", "actor_grad_mix": 0.1, "actor_ent": 3e-3, "slow_target_update": 2,
    "slow_target_fraction": 0.3,
}  # fmt: skip
V2 |= {
    f"{name.split('.')[0]}.{key}": value
    for name in V2
    for key, value in (("act", "elu"), ("norm", "none"))
    if "." in name
}
V2_SHAPES = {"pos": (3,), "vel": (2,), "image": (64, 64, 3), "photo": (64, 64, 1)}


class PlainDreamerV1(PlainDreamer):
    groups: ClassVar = {
        "model": ("encode", "dynamics", "decode", "reward", "pcont"),
        "actor": ("actor",),
        "value": ("value",),
    }

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        c = config
        D, U, S, A, depth = (c[key] for key in ("deter_size", "hidden_size", "stoch_size", "action_dim", "cnn_depth"))
        channels = 3
        for i in range(4):
            channels = self.layer(f"encode/h{i + 1}", 4, 4, channels, 2**i * depth)
        sizes = {
            "img1": (S + A, U),
            "img2": (D, U),
            "img3": (U, 2 * S),
            "obs1": (D + 4 * channels, U),
            "obs2": (U, 2 * S),
        }
        for name, size in sizes.items():
            self.layer(f"dynamics/{name}", *size)
        for name, shape in (("kernel", (U, 3 * D)), ("recurrent_kernel", (D, 3 * D)), ("bias", (2, 3 * D))):
            self.parameter(f"dynamics/cell/{name}", *shape)
        widths = [self.layer("decode/h1", S + D, 32 * depth), 4 * depth, 2 * depth, depth, 3]
        for i, kernel in enumerate((5, 5, 6, 6)):
            self.deconv(f"decode/h{i + 2}", kernel, widths[i + 1], widths[i])
        for name, outputs in (("reward", 1), ("pcont", 1), ("value", 1), ("actor", 2 * A)):
            last = self.mlp_layers(name + "/h{}", S + D, c[f"{name}_layers"] * [c["num_units"]])
            self.layer(f"{name}/hout", last, outputs)

    def head(self, name: str, feat: Tensor) -> Tensor:
        return self.dense(f"{name}/hout", self.mlp(name + "/h{}", feat))

    def next_deter(self, state: tuple[Tensor, Tensor], action: Tensor) -> Tensor:
        deter, stoch = state
        x = F.elu(self.dense("dynamics/img1", torch.cat([stoch, action], -1)))
        kernel, recurrent, bias = (
            self.params[f"dynamics/cell/{name}"] for name in ("kernel", "recurrent_kernel", "bias")
        )
        of_x, of_h = (x @ kernel + bias[0]).chunk(3, -1), (deter @ recurrent + bias[1]).chunk(3, -1)
        keep, reset = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        return keep * deter + (1 - keep) * torch.tanh(of_x[2] + reset * of_h[2])

    def gaussian(self, names: tuple[str, str], x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.dense(f"dynamics/{names[1]}", F.elu(self.dense(f"dynamics/{names[0]}", x))).chunk(2, -1)
        return mean, F.softplus(raw) + 0.1

    def policy(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.head("actor", feat).chunk(2, -1)
        shift = math.log(math.exp(self.config["action_init_std"]) - 1)
        return 5 * torch.tanh(mean / 5), F.softplus(raw + shift) + 1e-4

    def run(self) -> None:
        c = self.config
        B, T = c["B"], c["T"]
        image = torch.randint(256, (B, T, 64, 64, 3), generator=self.random, dtype=torch.uint8)
        batch = {"image": image, "action": torch.tanh(self.draw(B, T, c["action_dim"])), "reward": 2 * self.draw(B, T),
                 "discount": torch.ones(B, T, dtype=torch.float64)}  # fmt: skip
        batch["discount"][0, -1] = batch["discount"][-1, 1] = 0
        self.record("batch/", batch)
        self.record("params0/", self.params)
        for step in range(2):
            prefix = f"step{step}/"
            noise = self.draw(B, T, c["stoch_size"])
            self.record(prefix + "normal/", {"post": noise})
            for free_nats in (0, 50):
                variant = f"{prefix}variant/free_nats_{free_nats}/"
                loss, _, _ = self.world(batch, noise, free_nats)
                self.record(variant, {"loss_model": loss})
                self.gradients(variant + "grad/", loss, "model")
            losses = {}
            losses["model"], states, values = self.world(batch, noise, c["free_nats"])
            self.record(prefix, values)
            losses["actor"], losses["value"] = self.behaviour(prefix, states)
            grads = {name: self.gradients(prefix + "grad/", loss, name) for name, loss in losses.items()}
            self.record(prefix + "loss/", losses)
            self.record(prefix + "grad_norm/", {name: self.norm(grad) for name, grad in grads.items()})
            for name, grad in grads.items():
                self.adam(name, grad, c[f"{name}_lr"], c["adam_eps"], c["grad_clip"], c["weight_decay"])
            self.record(f"params{step + 1}/", self.params)

    def world(self, batch: Mapping[str, Tensor], noise: Tensor, free_nats: float) -> tuple[Tensor, Any, Params]:
        c = self.config
        image = batch["image"] / 255.0 - 0.5
        x = image.double().flatten(0, 1).movedim(-1, 1)
        for i in range(4):
            x = F.relu(self.conv(f"encode/h{i + 1}", x))
        embed = x.movedim(1, -1).flatten(1).unflatten(0, image.shape[:2])
        state = tuple(torch.zeros(c["B"], c[key], dtype=torch.float64) for key in ("deter_size", "stoch_size"))
        trail = []
        for t in range(c["T"]):
            deter = self.next_deter(state, batch["action"][:, t])
            prior = self.gaussian(("img2", "img3"), deter)
            post = self.gaussian(("obs1", "obs2"), torch.cat([deter, embed[:, t]], -1))
            state = deter, post[0] + post[1] * noise[:, t]
            trail.append((*state, *post, *prior))
        deter, stoch, mean, std, prior_mean, prior_std = (torch.stack(each, 1) for each in zip(*trail))
        feat = torch.cat([stoch, deter], -1)
        x = self.dense("decode/h1", feat.flatten(0, 1))[..., None, None]
        for i in range(4):
            x = self.conv_transpose(f"decode/h{i + 2}", x if i == 0 else F.relu(x))
        recon = x.movedim(1, -1).unflatten(0, feat.shape[:2])
        reward, logit = (self.head(name, feat)[..., 0] for name in ("reward", "pcont"))
        target = c["discount"] * batch["discount"]
        like = {
            "image": normal_log_prob(image.double(), recon, dims=3),
            "reward": normal_log_prob(SQUASH[c["clip_rewards"]](batch["reward"]), reward),
            "pcont": target * F.logsigmoid(logit) + (1 - target) * F.logsigmoid(-logit),
        }
        variance = (std / prior_std) ** 2
        kl = 0.5 * (variance + ((mean - prior_mean) / prior_std) ** 2 - 1 - variance.log()).sum(-1)
        losses = {"div": kl.mean().clamp(min=free_nats)} | {key: -value.mean() for key, value in like.items()}
        losses["pcont"] = c["pcont_scale"] * losses["pcont"]
        total = c["kl_scale"] * losses["div"] + losses["image"] + losses["reward"] + losses["pcont"]
        values = {
            "embed": embed, "feat": feat, "deter": deter, "post_stoch": stoch, "post_mean": mean, "post_std": std,
            "prior_mean": prior_mean, "prior_std": prior_std, "kl": kl, "recon/image": recon, "reward_mean": reward,
            "pcont_logit": logit, "pcont_target": target,
        } | {f"logprob/{key}": value for key, value in like.items()}  # fmt: skip
        record = {f"wm/{key}": value for key, value in values.items()} | {f"loss/{k}": v for k, v in losses.items()}
        return total, (deter, stoch), record

    def behaviour(self, prefix: str, states: Any) -> tuple[Tensor, Tensor]:
        c = self.config
        state = tuple(x.detach()[:, :-1].flatten(0, 1) for x in states)  # the last row may be an end
        H, N = c["horizon"], len(state[0])
        noise = {"prior": self.draw(H, N, c["stoch_size"]), "action": self.draw(H, N, c["action_dim"])}
        self.record(prefix + "normal/", noise)
        trail = []
        for k in range(H):
            base = self.policy(torch.cat([state[1], state[0]], -1).detach())
            action = torch.tanh(base[0] + base[1] * noise["action"][k])
            deter = self.next_deter(state, action)
            prior = self.gaussian(("img2", "img3"), deter)
            state = deter, prior[0] + prior[1] * noise["prior"][k]
            trail.append((*state, *prior, action, *base))
        names = ("deter", "stoch", "mean", "std", "action", "actor_base_mean", "actor_base_std")
        values = dict(zip(names, (torch.stack(each) for each in zip(*trail))))
        feat = values["feat"] = torch.cat([values["stoch"], values["deter"]], -1)
        reward, value = (self.head(name, feat)[..., 0] for name in ("reward", "value"))
        discount = torch.sigmoid(self.head("pcont", feat)[..., 0])
        returns, weight = lambda_returns(reward, discount, value, c["disclam"]), arrival(discount)[:-1]
        critic = -(weight * normal_log_prob(returns.detach(), self.head("value", feat[:-1].detach())[..., 0])).mean()
        values |= {"reward": reward, "value": value, "pcont": discount, "returns": returns, "weight": weight}
        self.record(prefix + "imag/", values)
        return -(weight * returns).mean(), critic


V1: dict[str, Any] = {
    "B": 2, "T": 4, "action_dim": 2, "hidden_size": 9, "deter_size": 12, "stoch_size": 5, "num_units": 8,
    "cnn_depth": 1, "reward_layers": 1, "pcont_layers": 2, "value_layers": 3, "actor_layers": 4, "pcont": True,
    "free_nats": 0.5, "kl_scale": 1.0, "pcont_scale": 10.0, "model_lr": 6e-4, "value_lr": 1e-3, "actor_lr": 8e-4,
    "grad_clip": 100.0, "discount": 0.99, "disclam": 0.95, "horizon": 5, "action_init_std": 5.0, "clip_rewards": "tanh",
    "adam_eps": 1e-7, "weight_decay": 0.0,
}  # fmt: skip
