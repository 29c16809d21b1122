"""Networks that end in a prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from fastwm import ops
from fastwm.nn.distributions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    TanhNormal,
    TruncatedNormal,
    TwoHot,
    UnitNormal,
)
from fastwm.nn.functional import symexp_bins
from fastwm.nn.layers import DREAMER_V3, MLP, Style, Widths, linear, linear_weights
from fastwm.nn.spaces import SpaceDict, classes, shape, spaces, total_width, width

Prediction = TypeVar("Prediction")
Action = dict[str, Tensor]
Draw = Callable[..., Tensor]
RealAction = Literal["bounded_normal", "tanh_normal", "trunc_normal"]
"""Distributions of real actions: DreamerV3's, Dreamer V1's, DreamerV2's."""


class Head(nn.Module, Generic[Prediction]):
    """MLP -> linear layer -> a prediction, in a style; see `MLP` for `units` and `layers`."""

    mlp: MLP
    out: nn.Module

    @property
    def params(self) -> ops.MLPWeights:
        """The parameters as `fastwm.ops.mlp` and the readouts of `fastwm.ops.rssm_imagine` take them."""
        return ops.MLPWeights(self.mlp.params, self.out_params, self.mlp.style.activation)

    @property
    def out_params(self) -> ops.LinearWeights:
        """The parameters of the last layer."""
        return linear_weights(self.out, f"out of {type(self).__name__}")

    @abstractmethod
    def dist(self, outputs: Tensor) -> Prediction:
        """The prediction with these parameters, [..., O], the outputs of `params`."""

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> Prediction:
        """The prediction from features x [..., F], of which one-hots [..., Z] may be given apart: see `MLP.then`."""
        return self.dist(self.mlp.then(self.out_params, x, onehot))


class TwoHotHead(Head[TwoHot]):
    """MLP -> logits over symexp bins; zero-initialised, so the first prediction is exactly zero."""

    bins: Tensor

    def __init__(self, inputs: int, units: int, layers: Widths, bins: int = 255, style: Style = DREAMER_V3):
        super().__init__()
        self.mlp = MLP(inputs, units, layers, style)
        self.out = linear(self.mlp.out_dim, bins, style, outscale=0.0)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def dist(self, outputs: Tensor) -> TwoHot:
        return TwoHot(outputs, self.bins)


class BernoulliHead(Head[Bernoulli]):
    """MLP -> one logit."""

    def __init__(self, inputs: int, units: int, layers: Widths, style: Style = DREAMER_V3):
        super().__init__()
        self.mlp = MLP(inputs, units, layers, style)
        self.out = linear(self.mlp.out_dim, 1, style)

    def dist(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs[..., 0])


class NormalHead(Head[UnitNormal]):
    """MLP -> N(mean, 1)."""

    def __init__(self, inputs: int, units: int, layers: Widths, style: Style = DREAMER_V3):
        super().__init__()
        self.mlp = MLP(inputs, units, layers, style)
        self.out = linear(self.mlp.out_dim, 1, style)

    def dist(self, outputs: Tensor) -> UnitNormal:
        return UnitNormal(outputs[..., 0], 0)


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
    """MLP -> a `Policy` over a dictionary of action spaces.

    The outputs are those of all actions, sorted by name: logits of a discrete one, means and then deviations of a real
    one, which has the distribution `real`. DreamerV3's "bounded_normal" has output layers of their own for logits,
    means and deviations, because its optimiser clips each tensor alone; the others share one layer.

    Args:
        outscale: scale of the initial output weights in DreamerV3's style.
        unimix: fraction of the uniform distribution mixed into discrete actions.
        min_std, shift: of "tanh_normal" and "trunc_normal": see `fastwm.ops.PolicyHead`.
    """

    invalid: Tensor

    def __init__(
        self, inputs: int, units: int, layers: Widths, space: SpaceDict, outscale: float = 1.0, unimix: float = 0.0,
        style: Style = DREAMER_V3, real: RealAction = "bounded_normal", min_std: float = 0.1, shift: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.space = {key: space[key] for key in sorted(space)}
        self.action_dim, self.unimix = total_width(space), unimix
        self.real, self.min_std, self.shift = real, min_std, shift
        self.specs = {key: ops.ActionHead(prod(shape(leaf)), classes(leaf)) for key, leaf in self.space.items()}
        """The actions as `fastwm.ops.rssm_imagine` takes them."""
        self.widths = [spec.size * (spec.classes or 2) for spec in self.specs.values()]
        """Outputs of each action."""
        self.mlp = MLP(inputs, units, layers, style)
        if real == "bounded_normal":
            self.heads = nn.ModuleList()
            for spec in self.specs.values():
                names, outputs = ("logits",) if spec.classes else ("mean", "std"), spec.size * (spec.classes or 1)
                own = {name: linear(self.mlp.out_dim, outputs, style, outscale) for name in names}
                self.heads.append(nn.ModuleDict(own))
        else:
            self.out = linear(self.mlp.out_dim, sum(self.widths), style)
            rows = self.out.weight.detach().split(self.widths)
            for leaf, weight in zip(self.space.values(), rows):
                # DreamerV2 has a layer for means and one for deviations, where V1 has one for both.
                for layer in weight.chunk(2) if real == "trunc_normal" and not classes(leaf) else [weight]:
                    nn.init.xavier_uniform_(layer)
        invalid = torch.cat([invalid_classes(leaf) for leaf in self.space.values()])
        nvecs = [leaf.nvec for leaf in self.space.values() if isinstance(leaf, spaces.MultiDiscrete)]
        self.ragged = any((nvec < nvec.max()).any() for nvec in nvecs)
        self.register_buffer("invalid", invalid, persistent=False)

    @property
    def keys(self) -> list[str]:
        """The names of the actions, in the order of the outputs."""
        return list(self.space)

    @property
    def policy_heads(self) -> tuple[ops.PolicyHead, ...]:
        """The actions as `fastwm.ops.gru_rssm_imagine` takes them."""
        if self.real == "bounded_normal":
            raise TypeError("an actor with bounded_normal actions belongs to rssm_imagine, which takes its specs")
        return tuple(
            ops.PolicyHead(*spec, "onehot" if spec.classes else self.real, self.min_std, self.shift)
            for spec in self.specs.values()
        )

    @property
    def out_params(self) -> ops.LinearWeights:
        """The output layers of all actions below each other.

        A class that an entry of a MultiDiscrete does not have gets a large negative bias and nothing else.
        """
        if self.real == "bounded_normal":
            layers = [
                linear_weights(layer, f"{name} of the actor's head of {key!r}")
                for key, head in zip(self.space, self.heads)
                for name, layer in head.items()  # type: ignore[operator]
            ]
            weight, bias = (torch.cat(part) for part in zip(*layers))
        else:
            weight, bias = linear_weights(self.out, "out of the actor")
        if self.ragged:
            weight, bias = weight.masked_fill(self.invalid[:, None], 0), bias.masked_fill(self.invalid, -1e9)
        return ops.LinearWeights(weight, bias)

    def noise(
        self, *batch: int, given: Tensor | Action | None = None, uniform: Draw = torch.rand, normal: Draw = torch.randn
    ) -> Tensor:
        """The draws that sampling takes, [*batch, sum of sizes], or `given` ones in this form.

        Uniform for categoricals and "trunc_normal", else standard normal.
        """
        if isinstance(given, Tensor):
            return given
        draws = []
        for key, spec in self.specs.items():
            fresh = uniform if spec.classes or self.real == "trunc_normal" else normal
            shape = (*batch, spec.size)
            draws.append(given[key].reshape(shape) if given else fresh(*shape, device=self.invalid.device))
        return torch.cat(draws, -1)

    def dist(self, outputs: Tensor) -> Policy:
        dists: dict[str, Any] = {}
        for (key, leaf), x in zip(self.space.items(), outputs.split(self.widths, -1)):
            if classes(leaf):
                dists[key] = Categorical(x.reshape(*x.shape[:-1], *shape(leaf), classes(leaf)), self.unimix)
            else:
                dists[key] = self.real_dist(*x.float().unflatten(-1, (2, *shape(leaf))).unbind(x.ndim - 1))
        return Policy(dists, outputs.ndim - 1)

    def real_dist(self, mean: Tensor, std: Tensor) -> BoundedNormal | TanhNormal | TruncatedNormal:
        """The distribution of a real action from the outputs for its means and deviations."""
        if self.real == "tanh_normal":
            return TanhNormal(mean, std, self.min_std, self.shift)
        return TruncatedNormal(mean, std, self.min_std) if self.real == "trunc_normal" else BoundedNormal(mean, std)


def invalid_classes(space: spaces.Space) -> Tensor:
    """Outputs for a class that the entry of a MultiDiscrete does not have: bool [outputs of the action]."""
    if isinstance(space, spaces.MultiDiscrete):
        return (torch.arange(classes(space)) >= torch.as_tensor(space.nvec)[..., None]).flatten()
    return torch.zeros(width(space) * (1 if classes(space) else 2), dtype=torch.bool)
