"""One update made by any number of processes, and the mistakes that such an update could hold."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import Agent
from fastwm.agents.dreamer_v2 import DreamerV2
from fastwm.agents.results import Streams
from fastwm.distributed import Alone, Ranks
from fastwm.optim import KerasAdam
from tests.agents_under_test import IMAGE, VECTOR, make_batch, tiny
from tests.ranks import float64

OBS = VECTOR | IMAGE | {"map": spaces.MultiDiscrete([3, 4])}
BOXES = {"turn": spaces.Box(-1, 1, (2,), np.float32), "lift": spaces.Box(-1, 1, (), np.float32)}
ACTS = {"planet": BOXES, "dreamer_v1": BOXES, "dreamer_v2": BOXES | {"fire": spaces.Discrete(3)},
        "dreamer_v3": BOXES | {"fire": spaces.Discrete(3), "pick": spaces.MultiDiscrete([2, 3])}}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "planet": dict(bits=5, overshooting_distance=3, overshooting_scale=0.5, clip=0.5),
    "dreamer_v1": dict(predict_cont=True, clip=0.5),
    "dreamer_v2": dict(predict_cont=True, clip=0.5, actor_grad="both"),
    "dreamer_v3": dict(warmup=0, return_rate=1.0, return_limit=1e-8),
}  # fmt: skip
SHARDS, STEPS, ROWS = 2, 4, 4
KEYS = [11, 12]

Result = dict[str, dict[str, Tensor]]


def update(
    group: Alone, name: str, fault: str = "", double: bool = True, updates: int = 1, free_nats: float = 0.0
) -> Result:
    """Everything that updates of this process's shards leave behind, by what it is."""
    with float64() if double else nullcontext(), FAULTS[fault](group) if fault else nullcontext():
        agent = tiny(name, OBS, ACTS[name], **CHANGES[name], free_nats=free_nats)
        with torch.no_grad():
            for p in agent.parameters():
                p += 0.1 * torch.randn_like(p)  # what begins as zero would hide faults
        agent.group = group
        each = SHARDS // group.world
        own = slice(group.rank * each, (group.rank + 1) * each)
        agent.streams = Streams(KEYS[own] if fault != "equal noise" else KEYS[:1] * each, agent.device)
        torch.manual_seed(1)
        rows = slice(own.start * ROWS // SHARDS, own.stop * ROWS // SHARDS)
        for _ in range(updates):
            batch = make_batch(agent, STEPS, ROWS)
            batch["reward"][:, ROWS // 2 :] *= 10  # so that the halves differ
            metrics = agent.update({key: value[:, rows] for key, value in batch.items()})
        return result_of(agent, metrics)


def result_of(agent: Agent, metrics: Mapping[str, Tensor]) -> Result:
    moments = {
        f"{name}/{i}/{key}": value.clone()
        for name, optimizer in agent.optimizers().items()
        for i, state in enumerate(optimizer.state.values())
        for key, value in state.items()
    }
    return {
        "metrics": {key: value.detach().clone() for key, value in metrics.items()},
        "gradients": {key: p.grad.clone() for key, p in agent.named_parameters() if p.grad is not None},
        "moments": moments,
        "state": {key: x.clone() for key, x in agent.state_dict().items() if isinstance(x, Tensor)},
    }


def distances(alone: Result, ranks: list[Result], parts: tuple[str, ...]) -> dict[str, float]:
    """How far the ranks' mean metrics, and every rank's tensors, are from those of one process, by their norms."""
    worst = {}
    for part in parts:
        for key, wanted in alone[part].items():
            given = [result[part][key].double() for result in ranks]
            if part == "metrics":
                given = [torch.stack(given).mean(0)]
            scale = max(float(wanted.double().norm()), 1e-3)
            worst[f"{part} {key}"] = max(float((x - wanted.double()).norm()) / scale for x in given)
    return worst


# Faults


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def local_percentiles(group: Alone) -> Any:
    return replaced(Ranks, "gather", lambda self, x: x)


def mean_of_percentiles(group: Alone) -> Any:
    from fastwm.nn.normalize import PercentileNormalizer

    update = PercentileNormalizer.update

    def averaged(self: PercentileNormalizer, x: Tensor) -> Tensor:
        parts = x.chunk(group.world)
        before, scales = (self.lo.clone(), self.hi.clone()), []
        for part in parts:
            self.lo.copy_(before[0]), self.hi.copy_(before[1])
            update(self, part)
            scales.append(torch.stack([self.lo, self.hi]))
        lo, hi = torch.stack(scales).mean(0)
        self.lo.copy_(lo), self.hi.copy_(hi)
        return self.scale

    return replaced(PercentileNormalizer, "update", averaged)


def unreduced_kl(group: Alone) -> Any:
    return replaced(Ranks, "mean", lambda self, x: x)


def clip_before(group: Alone) -> Any:
    """KerasAdam's clip; LaProp clips each tensor inside its step, so there the reduction is what moves."""
    backward = KerasAdam.backward

    def clipped(self: KerasAdam, loss: Tensor, average: Callable[[list[Tensor]], None] | None = None) -> Tensor:
        def late(grads: list[Tensor]) -> None:
            torch.nn.utils.clip_grad_norm_(self.params, self.param_groups[0]["clip"])
            if average:
                average(grads)

        return backward(self, loss, late)

    return replaced(KerasAdam, "backward", clipped)


def agc_before(group: Alone) -> Any:
    mean = Ranks.mean_

    def late(self: Ranks, tensors: list[Tensor]) -> None:
        for x in tensors:
            if x.dim():
                x.mul_(0.003 / x.norm().clamp(min=0.003))
        mean(self, tensors)

    return replaced(Ranks, "mean_", late)


def total_for_mean(group: Alone) -> Any:
    mean = Ranks.mean_

    def total(self: Ranks, tensors: list[Tensor]) -> None:
        mean(self, tensors)
        for x in tensors:
            x.mul_(self.world)

    return replaced(Ranks, "mean_", total)


def one_left_out(group: Alone) -> Any:
    """The second reduction of an update that has several, the only one of others."""
    mean, calls = Ranks.mean_, []

    def some(self: Ranks, tensors: list[Tensor]) -> None:
        calls.append(len(tensors))
        if len(tensors) > 1 and sum(count > 1 for count in calls) != 1:
            mean(self, tensors)

    return replaced(Ranks, "mean_", some)


def early_slow_critic(group: Alone) -> Any:
    """The slow critic moves towards this rank's own critic."""
    moved = DreamerV2.update_slow_critic

    def early(self: DreamerV2, apply: Tensor | None = None) -> None:
        kept = [p.detach().clone() for p in self.critic.parameters()]
        for p in self.critic.parameters():
            p.data += 1e-3 * group.rank
        moved(self, apply)
        for p, value in zip(self.critic.parameters(), kept):
            p.data.copy_(value)

    return replaced(DreamerV2, "update_slow_critic", early)


FAULTS: dict[str, Callable[[Alone], Any]] = {
    "local percentiles": local_percentiles,
    "mean of percentiles": mean_of_percentiles,
    "unreduced KL": unreduced_kl,
    "clip before the reduction": clip_before,
    "AGC before the reduction": agc_before,
    "sum for mean": total_for_mean,
    "equal noise": lambda group: nullcontext(),
    "one reduction left out": one_left_out,
    "slow critic moved early": early_slow_critic,
}
