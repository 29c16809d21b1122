"""Replay numbers recorded from World Models' M: `python -m tests.golden_mdn_rnn FILE.npz`.

Takes `mdn_rnn.npz` (small networks: losses, gradients, updates, dreams; both public codes) and
`mdn_rnn_car_pretrained.npz` (the published CarRacing M and controllers).
"""

import argparse
import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastwm import ops
from fastwm.agents.world_models.controller import Controller
from fastwm.agents.world_models.official import load_controller, load_rnn
from fastwm.nn import MDNRNN
from fastwm.nn.mdn_rnn import Prediction
from tests.golden_dreamerv3 import Check, within

VALUE_TOLERANCE = 1e-5
GRAD_TOLERANCE = 1e-5


class Golden:
    def __init__(self, path: str | Path):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.config = ast.literal_eval(str(self.data["config"]))

    def replay(self) -> list[Check]:
        if "initial_mu" in self.data:
            return list(self.pretrained())
        return [*self.car(), *self.doom(), *self.as_released(), *self.joint()]

    def tensor(self, name: str, time_major: bool = True) -> Tensor:
        """Recorded batch-major [B, T, ...]."""
        tensor = torch.from_numpy(self.data[name].astype(np.float32))
        return tensor.transpose(0, 1) if time_major else tensor

    def rnn(self, part: str, **options: Any) -> MDNRNN:
        kernel, out = self.data[f"{part}/lstm_kernel"], self.data[f"{part}/out_b"]
        hidden, heads = kernel.shape[1] // 4, options.get("heads", ())
        latents = (len(out) - len(heads)) // 15
        rnn = MDNRNN(latents, kernel.shape[0] - hidden - latents - options.get("restart", False), hidden, **options)
        load_rnn(rnn, [self.data[f"{part}/{name}"] for name in ("out_w", "out_b", "lstm_kernel", "lstm_bias")])
        return rnn

    def values(self, prefix: str, ours: dict[str, Tensor], tolerance: float = VALUE_TOLERANCE) -> Iterator[Check]:
        for name, value in ours.items():
            yield within(f"{prefix}/{name}", value.detach().numpy(), self.data[f"{prefix}/{name}"], tolerance)

    def grads(self, prefix: str, params: dict[str, Tensor], tolerance: float = GRAD_TOLERANCE) -> Iterator[Check]:
        yield from self.values(prefix, params, tolerance)

    def predicted(self, prediction: Prediction, state: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        mixture = prediction.mixture
        return {
            "logmix": mixture.logits.log_softmax(-1).transpose(0, 1), "mean": mixture.mean.transpose(0, 1),
            "logstd": mixture.log_std.transpose(0, 1), "final_h": state[0], "final_c": state[1],
        }  # fmt: skip

    def car(self) -> Iterator[Check]:
        z, action = self.tensor("car/z"), self.tensor("car/action")
        zero = torch.zeros_like(self.tensor("car/init_h", False))
        carried = self.tensor("car/init_h", False), self.tensor("car/init_c", False)
        rnn = self.rnn("car/params0")
        optimizer = adam_without_corrected_epsilon(rnn.parameters(), self.config["lr"], 1e-8)
        for prefix, state in (("carry_start", carried), ("step0", (zero, zero)), ("step1", (zero, zero))):
            prediction, last = rnn(z[:-1], action[:-1], state)
            loss = rnn.loss(prediction, z[1:])
            ours = self.predicted(prediction, last) | {"hidden": prediction.hidden.transpose(0, 1), "cost": loss.total}
            yield from self.values(f"car/{prefix}", ours)
            optimizer.zero_grad()
            loss.total.backward()
            yield from self.grads(f"car/{prefix}/grad", in_tensorflow(rnn, grads=True))
            if prefix.startswith("step"):
                clip_elements(rnn.parameters(), self.config["grad_clip_elementwise"])
                optimizer.step()
                step = int(prefix[-1]) + 1
                yield from self.grads(f"car/params{step}", in_tensorflow(rnn, grads=False))
        yield from self.car_dream()

    def car_dream(self) -> Iterator[Check]:
        rnn = self.rnn("car/params0").double()
        for tau in (0.5, 1.0, 1.25):
            data = {key: torch.from_numpy(self.data[f"car/sample/tau{tau}/{key}"]) for key in ("uniform", "normal")}
            z, state, path = torch.from_numpy(self.data["car/sample/z0"])[None], rnn.initial(1), []
            for t, action in enumerate(torch.from_numpy(self.data["car/sample/actions"])):
                prediction, state = rnn.step(z, action[None], state)
                z = prediction.mixture.sample(tau, data["uniform"][t][None], data["normal"][t][None])
                path.append(z[0])
            yield from self.values(f"car/sample/tau{tau}", {"z": torch.stack(path)})

    def doom(self) -> Iterator[Check]:
        z, action = self.tensor("doom/z"), self.tensor("doom/action")[..., None]
        restart = self.tensor("doom/restart")
        state = self.tensor("doom/init_h", False), self.tensor("doom/init_c", False)
        rnn = self.rnn("doom/params0", restart=True, heads=("done",))
        optimizer = adam_without_corrected_epsilon(rnn.parameters(), self.config["lr"], 1e-8)
        for step in range(2):
            prediction, last = rnn(z[:-1], action[:-1], state, restart[:-1].bool())
            loss = rnn.loss(prediction, z[1:], {"done": restart[1:]})
            ours = self.predicted(prediction, last)
            ours |= {"restart_logit": prediction.heads["done"].T, "z_cost": loss.latent, "r_cost": loss.heads["done"]}
            yield from self.values(f"doom/step{step}", ours | {"cost": loss.total})
            optimizer.zero_grad()
            loss.total.backward()
            yield from self.grads(f"doom/step{step}/grad", in_tensorflow(rnn, grads=True))
            clip_elements(rnn.parameters(), self.config["grad_clip_elementwise"])
            optimizer.step()
            yield from self.grads(f"doom/params{step + 1}", in_tensorflow(rnn, grads=False))
        yield from self.doom_dream()

    def doom_dream(self) -> Iterator[Check]:
        rnn = self.rnn("doom/params0", restart=True, heads=("done",)).double()
        for tau in (0.5, 1.0, 1.25):
            noise = {key: torch.from_numpy(self.data[f"doom/sample/tau{tau}/{key}"]) for key in ("uniform", "normal")}
            z, state, first = torch.from_numpy(self.data["doom/sample/z0"])[None], rnn.initial(1), torch.ones(1).bool()
            path: dict[str, list[Tensor]] = {"z": [], "h": [], "c": [], "done": []}
            for t, action in enumerate(torch.from_numpy(self.data["doom/sample/actions"])):
                prediction, state = rnn.step(z, action.view(1, 1), state, first)
                z = prediction.mixture.sample(tau, noise["uniform"][t][None], noise["normal"][t][None])
                first = prediction.heads["done"] > 0
                for key, value in (("z", z), ("h", state[0]), ("c", state[1]), ("done", first)):
                    path[key].append(value[0])
            yield from self.values(f"doom/sample/tau{tau}", {key: torch.stack(x) for key, x in path.items()})

    def as_released(self) -> Iterator[Check]:
        """The public graph writes the fed start state, not zeros, where an episode restarts."""
        z, action = self.tensor("doom/z"), self.tensor("doom/action")[..., None]
        restart = self.tensor("doom/restart")
        start = self.tensor("doom/init_h", False), self.tensor("doom/init_c", False)
        rnn = self.rnn("doom/params0", restart=True, heads=("done",))
        state, hidden, lstm = start, [], rnn.lstm
        for t in range(len(z) - 1):
            again = restart[t].bool()[:, None]
            state = tuple(torch.where(again, fed, own) for fed, own in zip(start, state))
            x = torch.cat([z[t], action[t], restart[t][:, None]], -1)
            weights = lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0
            state = ops.lstm_step(x, *state, *weights, forget_bias=1.0)
            hidden.append(state[0])
        mixture, extra = rnn.head(torch.stack(hidden))
        prediction = Prediction(mixture, {"done": extra[..., 0]}, torch.stack(hidden))
        loss = rnn.loss(prediction, z[1:], {"done": restart[1:]})
        ours = self.predicted(prediction, state) | {"restart_logit": prediction.heads["done"].T}
        ours |= {"z_cost": loss.latent, "r_cost": loss.heads["done"], "cost": loss.total}
        yield from self.values("doom/as_released", ours)
        loss.total.backward()
        yield from self.grads("doom/as_released/grad", in_tensorflow(rnn, grads=True))

    def joint(self) -> Iterator[Check]:
        """The other public code: shared mixture weights, PyTorch's LSTM with both biases, input [action, latent]."""
        params = {key.removeprefix("joint/params0/"): torch.from_numpy(value) for key, value in self.data.items()
                  if key.startswith("joint/params0/")}  # fmt: skip
        latents, actions = self.data["joint/latent"].shape[-1], self.data["joint/action"].shape[-1]
        swap = [*range(actions, actions + latents), *range(actions)]
        rnn = MDNRNN(latents, actions, params["gmm_linear.weight"].shape[1], heads=("reward", "done"), joint=True,
                     forget_bias=0.0)  # fmt: skip
        rnn.lstm.bias_hh_l0.requires_grad_(True)
        rnn.head.linear.load_state_dict({k: params[f"gmm_linear.{k}"] for k in ("weight", "bias")})
        with torch.no_grad():
            for name, p in rnn.lstm.named_parameters():
                theirs = params[f"rnn.{name}"]
                p.copy_(theirs[:, swap] if name == "weight_ih_l0" else theirs)
        yield from self.joint_losses(rnn, swap)

    def joint_losses(self, rnn: MDNRNN, swap: list[int]) -> Iterator[Check]:
        z, action, target = (self.tensor(f"joint/{name}") for name in ("latent", "action", "next_latent"))
        ends = {"done": self.tensor("joint/terminal"), "reward": self.tensor("joint/reward")}
        prediction, _ = rnn(z, action)
        mixture, nll = prediction.mixture, prediction.mixture.nll(target)
        ours = {
            "mu": mixture.mean.mT, "sigma": mixture.log_std.exp().mT, "logpi": mixture.logits.log_softmax(-1),
            "reward_pred": prediction.heads["reward"], "done_logit": prediction.heads["done"], "gmm_per_step": nll,
        }  # fmt: skip
        yield from self.values("joint", ours)
        optimizer = torch.optim.RMSprop(rnn.parameters(), lr=1e-3, alpha=0.9)
        for part, names in (("no_reward", ["done"]), ("with_reward", ["done", "reward"])):
            prediction, _ = rnn(z, action)
            loss = rnn.loss(prediction, target, {name: ends[name] for name in names}, done_weight=1.0)
            ours = {"gmm": loss.latent, "bce": loss.heads["done"], "loss": loss.total}
            yield from self.values(f"joint/{part}", ours)
            optimizer.zero_grad()
            loss.total.backward()
            yield from self.grads(f"joint/{part}/grad", in_ctallec(rnn, swap, grads=True))
        optimizer.step()
        yield from self.grads("joint/with_reward/params1", in_ctallec(rnn, swap, grads=False))

    def pretrained(self) -> Iterator[Check]:
        """The published CarRacing M, driven, dreaming, and the sums of trap 41."""
        rnn = MDNRNN(32, 3, 256)
        load_rnn(rnn, [self.data[name] for name in ("out_w", "out_b", "lstm_kernel", "lstm_bias")])
        rnn.double()
        z, action = (torch.from_numpy(self.data[f"forced/{name}"]).double()[:, None] for name in ("z", "action"))
        prediction, _ = rnn(z, action)
        mixture = prediction.mixture
        ours = {"logmix": mixture.logits.log_softmax(-1), "mean": mixture.mean, "logstd": mixture.log_std,
                "h": prediction.hidden}  # fmt: skip
        yield from self.values("forced", {name: value[:, 0] for name, value in ours.items()})
        yield from self.pretrained_dream(rnn)
        z, action = torch.from_numpy(self.data["initial_mu"]).double()[None], torch.tensor([[0, 0.5, 0]]).double()
        state = rnn.initial(1)
        for count in (1, 2, 3):
            _, state = rnn.step(z, action, state)
            sums = {f"sum_h_{count}": state[0].sum(), f"sum_c_{count}": state[1].sum()}
            yield from self.values("check", sums)

    def pretrained_dream(self, rnn: MDNRNN) -> Iterator[Check]:
        controller = Controller(32, 256, 3, "car")
        load_controller(controller, self.data["controller_w"], self.data["controller_b"])
        controller.double()
        noise = {key: torch.from_numpy(self.data[f"dream/{key}"]).double() for key in ("normal0", "uniform", "normal")}
        mu, logvar = (torch.from_numpy(self.data[f"initial_{name}"]).double() for name in ("mu", "logvar"))
        z, state = (mu + (logvar / 2).exp() * noise["normal0"])[None], rnn.initial(1)
        path: dict[str, list[Tensor]] = {"z": [z[0]], "action": [], "h": [], "c": []}
        for t in range(20):
            action = controller(z, *state)
            prediction, state = rnn.step(z, action, state)
            z = prediction.mixture.sample(1.0, noise["uniform"][t][None], noise["normal"][t][None])
            for key, value in (("z", z), ("action", action), ("h", state[0]), ("c", state[1])):
                path[key].append(value[0])
        yield from self.values("dream", {key: torch.stack(x) for key, x in path.items()})


def clip_elements(params: Iterable[nn.Parameter], bound: float) -> None:
    torch.nn.utils.clip_grad_value_([p for p in params if p.grad is not None], bound)


def adam_without_corrected_epsilon(params: Iterable[nn.Parameter], lr: float, eps: float) -> torch.optim.Adam:
    """TensorFlow's Adam adds epsilon before the bias correction, PyTorch's after it."""
    optimizer = torch.optim.Adam([p for p in params if p.requires_grad], lr=lr, eps=eps)

    def corrected(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps = [int(state["step"]) for state in optimizer.state.values()]
        optimizer.param_groups[0]["eps"] = eps / (1 - 0.999 ** (max(steps, default=0) + 1)) ** 0.5

    optimizer.register_step_pre_hook(corrected)
    return optimizer


def in_tensorflow(rnn: MDNRNN, grads: bool) -> dict[str, Tensor]:
    """Parameters, or their gradients, in the recorded layout."""
    lstm, linear = rnn.lstm, rnn.head.linear

    def get(p: nn.Parameter) -> Tensor:
        value = p.grad if grads else p.detach()
        assert value is not None
        return value

    kernel = torch.cat([get(lstm.weight_ih_l0), get(lstm.weight_hh_l0)], 1)
    i, f, j, o = kernel.chunk(4)
    b_i, b_f, b_j, b_o = get(lstm.bias_ih_l0).chunk(4)
    return {
        "lstm_kernel": torch.cat([i, j, f, o]).T, "lstm_bias": torch.cat([b_i, b_j, b_f, b_o]),
        "out_w": get(linear.weight).T, "out_b": get(linear.bias),
    }  # fmt: skip


def in_ctallec(rnn: MDNRNN, swap: list[int], grads: bool) -> dict[str, Tensor]:
    """The same in the other code's layout, whose input is [action, latent]."""
    back = torch.tensor(swap).argsort()
    ours = {f"rnn.{name}": p for name, p in rnn.lstm.named_parameters()}
    ours |= {f"gmm_linear.{name}": p for name, p in rnn.head.linear.named_parameters()}
    values = {name: p.grad if grads else p.detach() for name, p in ours.items()}
    return values | {"rnn.weight_ih_l0": values["rnn.weight_ih_l0"][:, back]}


def report(golden: Callable[[Path], Any], description: str) -> int:
    """Replay the file named on the command line and print the worst errors."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if not args.file.is_file():
        parser.error(f"{args.file} does not exist")
    checks = golden(args.file).replay()
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.error:9.2e}  {check.name}")
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks)} quantities, {failed} beyond tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(report(Golden, __doc__))
