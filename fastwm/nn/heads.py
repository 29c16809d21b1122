"""Networks that end in a prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.distributions import Bernoulli, BoundedNormal, Categorical, TwoHot
from fastwm.nn.functional import symexp_bins
from fastwm.nn.fused import plain
from fastwm.nn.layers import MLP, Linear, RMSNorm
from fastwm.nn.spaces import SpaceDict, classes, shape, spaces, total_width

Prediction = TypeVar("Prediction")


class Head(nn.Module, Generic[Prediction]):
    """MLP -> the parameters of a prediction from [x, onehot]; `onehot` [..., Z] may be left out, or be a part of x."""

    mlp: MLP
    out: nn.Module

    @property
    def params(self) -> ops.MLPWeights:
        """As `fastwm.ops.mlp` and the readouts of `fastwm.ops.rssm_imagine` take them."""
        return ops.MLPWeights(self.mlp.params, self.out_params)

    @property
    def out_params(self) -> ops.LinearWeights:
        """Those of the last layer."""
        return plain(self.out, Linear, f"out of {type(self).__name__}").params

    @abstractmethod
    def dist(self, outputs: Tensor) -> Prediction:
        """The prediction with these parameters, [..., O], which are what `params` puts out."""

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> Prediction:
        if not (isinstance(self.mlp, MLP) and self.mlp.is_plain):
            return self.dist(F.linear(self.mlp(x if onehot is None else torch.cat([x, onehot], -1)), *self.out_params))
        return self.dist(ops.mlp(x, self.params, onehot, RMSNorm.eps))


class TwoHotHead(Head[TwoHot]):
    """MLP -> logits over symexp bins; zero-initialised, so the first prediction is exactly zero."""

    bins: Tensor

    def __init__(self, inputs: int, units: int, layers: int, bins: int = 255):
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.out = Linear(units, bins, outscale=0.0)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def dist(self, outputs: Tensor) -> TwoHot:
        return TwoHot(outputs, self.bins)


class BernoulliHead(Head[Bernoulli]):
    """MLP -> one logit."""

    def __init__(self, inputs: int, units: int, layers: int):
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.out = Linear(units, 1)

    def dist(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs[..., 0])


Action = dict[str, Tensor]


class CategoricalAction(nn.Module):
    """Logits for one Discrete or MultiDiscrete action; classes beyond an entry's own count are ruled out."""

    invalid: Tensor | None

    def __init__(self, units: int, space: spaces.Space, outscale: float, unimix: float):
        super().__init__()
        self.shape, self.classes, self.unimix = shape(space), classes(space), unimix
        self.logits = Linear(units, prod(self.shape) * self.classes, outscale)
        invalid = None
        if isinstance(space, spaces.MultiDiscrete) and (space.nvec < self.classes).any():
            invalid = torch.arange(self.classes) >= torch.as_tensor(space.nvec)[..., None]
        self.register_buffer("invalid", invalid, persistent=False)

    @property
    def spec(self) -> ops.ActionHead:
        return ops.ActionHead(prod(self.shape), self.classes)

    @property
    def params(self) -> ops.LinearWeights:
        """The output layer; a class that is ruled out has a large negative bias and nothing else."""
        if self.invalid is None:
            return self.logits.params
        invalid = self.invalid.flatten()
        return ops.LinearWeights(
            self.logits.weight.masked_fill(invalid[:, None], 0), self.logits.bias.masked_fill(invalid, -1e9)
        )

    def forward(self, outputs: Tensor) -> Categorical:
        """The distribution that `params` put out, [..., size * classes]."""
        return Categorical(outputs.reshape(*outputs.shape[:-1], *self.shape, self.classes), self.unimix)


class NormalAction(nn.Module):
    """Mean and standard deviation of one continuous action, in two layers of their own (AGC clips each alone)."""

    def __init__(self, units: int, space: spaces.Space, outscale: float):
        super().__init__()
        self.shape = shape(space)
        self.mean = Linear(units, prod(self.shape), outscale)
        self.std = Linear(units, prod(self.shape), outscale)

    @property
    def spec(self) -> ops.ActionHead:
        return ops.ActionHead(prod(self.shape), 0)

    @property
    def params(self) -> ops.LinearWeights:
        """Both layers as one: means, then deviations."""
        return ops.LinearWeights(*(torch.cat(pair) for pair in zip(self.mean.params, self.std.params)))

    def forward(self, outputs: Tensor) -> BoundedNormal:
        """The distribution that `params` put out, [..., 2 * size]."""
        mean, std = outputs.unflatten(-1, (2, *self.shape)).unbind(outputs.ndim - 1)
        return BoundedNormal(mean, std)


class Policy:
    """Independent distributions, one an action; log-probabilities and entropies are summed over all dimensions."""

    def __init__(self, dists: Mapping[str, Any], batch_ndim: int):
        self.dists = dists
        self.batch_ndim = batch_ndim

    def sample(self, noise: Action | None = None) -> Action:
        return {key: dist.sample(noise[key] if noise else None) for key, dist in self.dists.items()}

    def mode(self) -> Action:
        return {key: dist.mode() for key, dist in self.dists.items()}

    def log_prob(self, action: Action) -> Tensor:
        return self._sum({key: dist.log_prob(action[key]) for key, dist in self.dists.items()})

    def entropy(self) -> Tensor:
        return self._sum({key: dist.entropy() for key, dist in self.dists.items()})

    def _sum(self, terms: Action) -> Tensor:
        flat = [x.flatten(self.batch_ndim).sum(-1) if x.ndim > self.batch_ndim else x for x in terms.values()]
        return torch.stack(flat).sum(0)


class Actor(Head[Policy]):
    """MLP -> a `Policy` over a dictionary of action spaces."""

    def __init__(self, inputs: int, units: int, layers: int, space: SpaceDict, outscale: float, unimix: float):
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.keys = sorted(space)
        self.heads = nn.ModuleList(
            CategoricalAction(units, space[key], outscale, unimix)
            if classes(space[key])
            else NormalAction(units, space[key], outscale)
            for key in self.keys
        )
        self.action_dim = total_width(space)

    @property
    def specs(self) -> dict[str, ops.ActionHead]:
        return {key: head.spec for key, head in zip(self.keys, self.outputs)}

    @property
    def outputs(self) -> list[CategoricalAction | NormalAction]:
        return [
            plain(head, CategoricalAction, key)
            if isinstance(head, CategoricalAction)
            else plain(head, NormalAction, key)
            for key, head in zip((f"the actor's head of {key!r}" for key in self.keys), self.heads)
        ]

    @property
    def out_params(self) -> ops.LinearWeights:
        """The output layers of all actions below each other."""
        outputs = zip(*(head.params for head in self.outputs))
        return ops.LinearWeights(*(torch.cat(part) for part in outputs))

    def dist(self, outputs: Tensor) -> Policy:
        parts = outputs.split([spec.size * (spec.classes or 2) for spec in self.specs.values()], -1)
        return Policy({key: head(part) for key, head, part in zip(self.keys, self.heads, parts)}, outputs.ndim - 1)
