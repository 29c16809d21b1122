"""Networks of PlaNet, Dreamer V1 and V2: one activation throughout, Keras' initialisation, unit-variance heads."""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn.distributions import Bernoulli, Categorical, TanhNormal, TruncatedNormal, UnitNormal
from fastwm.nn.fused import is_plain, plain
from fastwm.nn.gru_rssm import EPS, Layer, glorot_
from fastwm.nn.heads import Policy
from fastwm.nn.spaces import SpaceDict, classes, shape, spaces, width
from fastwm.ops.norm_act import activate


class DenseLayer(Layer):
    """Linear -> LayerNorm where `norm` -> activation."""

    def __init__(self, inputs: int, units: int, activation: str, norm: bool = False):
        super().__init__(inputs, units, norm)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.linear(x), self.norm, self.activation)


def norm_act(x: Tensor, norm: nn.LayerNorm | None, activation: str) -> Tensor:
    """The activation of x [..., D], normed before where there is a norm."""
    if norm is None:
        return activate(x, None, None, EPS, activation)
    return activate(x, norm.weight, norm.bias, norm.eps, activation)


class DenseMLP(nn.Sequential):
    """`layers` of `units`; none is the identity."""

    def __init__(self, inputs: int, units: int, layers: int, activation: str, norm: bool = False):
        super().__init__(*(DenseLayer(units if i else inputs, units, activation, norm) for i in range(layers)))
        self.out_dim = units if layers else inputs
        self.activation = activation

    @property
    def params(self) -> tuple[ops.LayerWeights, ...]:
        return tuple(plain(layer, DenseLayer, f"layer {i} of DenseMLP").params for i, layer in enumerate(self))

    @property
    def is_plain(self) -> bool:
        """Whether `params` say all that the layers compute."""
        return all(
            isinstance(layer, DenseLayer) and is_plain(layer, DenseLayer) and layer.activation == self.activation
            and is_plain(layer.linear, nn.Linear)
            and (layer.norm is None or (is_plain(layer.norm, nn.LayerNorm) and layer.norm.eps == EPS))
            for layer in self
        )  # fmt: skip

    def then(self, out: ops.LinearWeights, x: Tensor, onehot: Tensor | None = None) -> Tensor:
        """A linear layer behind these, [onehot, x] [..., inputs] -> [..., O]."""
        if not self or not self.is_plain:
            return F.linear(self(x if onehot is None else torch.cat([onehot, x], -1)), *out)
        first, *rest = self.params
        if onehot is not None:  # which `ops.mlp` reads behind x
            columns = first.weight.split([onehot.shape[-1], x.shape[-1]], 1)
            first = first._replace(weight=torch.cat(columns[::-1], 1))
        return ops.mlp(x, ops.MLPWeights((first, *rest), out, self.activation), onehot, EPS)


def glorot_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    glorot_(layer)
    return layer


class ScalarHead(nn.Module):
    """MLP -> one number. Heads read [onehot, x] [..., F], of which one-hots may be given apart."""

    def __init__(self, inputs: int, units: int, layers: int, activation: str, norm: bool = False):
        super().__init__()
        self.mlp = DenseMLP(inputs, units, layers, activation, norm)
        self.out = glorot_linear(self.mlp.out_dim, 1)

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> Tensor:
        out = plain(self.out, nn.Linear, f"out of {type(self).__name__}")
        return self.mlp.then(ops.LinearWeights(out.weight, out.bias), x, onehot)[..., 0]


class NormalHead(ScalarHead):
    """MLP -> N(mean, 1)."""

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> UnitNormal:  # type: ignore[override]
        return UnitNormal(super().forward(x, onehot), 0)


class LogitHead(ScalarHead):
    """MLP -> Bernoulli."""

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> Bernoulli:  # type: ignore[override]
        return Bernoulli(super().forward(x, onehot))


class DenseActor(nn.Module):
    """MLP -> a `Policy` over a dictionary of action spaces, in the form `fastwm.ops.gru_rssm_imagine` takes.

    Real actions are of `dist`, with `min_std` and `shift` as `fastwm.ops.PolicyHead` has them.
    """

    invalid: Tensor

    def __init__(
        self, inputs: int, units: int, layers: int, activation: str, norm: bool, space: SpaceDict,
        dist: Literal["tanh_normal", "trunc_normal"], min_std: float, shift: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.space = {key: space[key] for key in sorted(space)}
        self.mlp = DenseMLP(inputs, units, layers, activation, norm)
        self.heads = tuple(
            ops.PolicyHead(prod(shape(leaf)), classes(leaf), "onehot" if classes(leaf) else dist, min_std, shift)
            for leaf in self.space.values()
        )
        self.sizes = [head.size * (head.classes or 2) for head in self.heads]
        self.out = glorot_linear(self.mlp.out_dim, sum(self.sizes))
        # DreamerV2 has two layers, means and deviations, where V1 has one.
        for head, weight in zip(self.heads, self.out.weight.detach().split(self.sizes)):
            for layer in weight.chunk(2) if head.dist == "trunc_normal" else [weight]:
                nn.init.xavier_uniform_(layer)
        self.register_buffer("invalid", torch.cat([invalid_classes(leaf) for leaf in self.space.values()]), False)

    @property
    def out_params(self) -> ops.LinearWeights:
        """The outputs of all heads; a class that an entry does not have gets a large negative bias and nothing else."""
        out = plain(self.out, nn.Linear, "out of DenseActor")
        if not any(isinstance(leaf, spaces.MultiDiscrete) for leaf in self.space.values()):
            return ops.LinearWeights(out.weight, out.bias)
        return ops.LinearWeights(
            out.weight.masked_fill(self.invalid[:, None], 0), out.bias.masked_fill(self.invalid, -1e9)
        )

    def noise(self, *batch: int) -> Tensor:
        """What sampling takes, [*batch, sum of sizes]: uniform, or normal for a tanh_normal."""
        draws = [
            (torch.randn if head.dist == "tanh_normal" else torch.rand)(
                *batch, head.size, device=self.out.weight.device
            )
            for head in self.heads
        ]
        return torch.cat(draws, -1)

    def forward(self, x: Tensor, onehot: Tensor | None = None) -> Policy:
        outs = self.mlp.then(self.out_params, x, onehot).split(self.sizes, -1)
        return Policy(
            {key: policy_dist(head, x, shape(self.space[key])) for key, head, x in zip(self.space, self.heads, outs)},
            x.ndim - 1,
        )


def invalid_classes(space: spaces.Space) -> Tensor:
    """Which outputs stand for a class that the entry of a MultiDiscrete does not have."""
    if isinstance(space, spaces.MultiDiscrete):
        return (torch.arange(classes(space)) >= torch.as_tensor(space.nvec)[..., None]).flatten()
    return torch.zeros(width(space) * (1 if classes(space) else 2), dtype=torch.bool)


def policy_dist(head: ops.PolicyHead, x: Tensor, event: tuple[int, ...]) -> Categorical | TanhNormal | TruncatedNormal:
    """The distribution of an action of shape `event`, from its head's outputs x [..., O]."""
    if head.classes:
        return Categorical(x.reshape(*x.shape[:-1], *event, head.classes))
    mean, raw = (part.reshape(*x.shape[:-1], *event) for part in x.float().chunk(2, -1))
    if head.dist == "tanh_normal":
        return TanhNormal(mean, raw, head.min_std, head.shift)
    return TruncatedNormal(mean, raw, head.min_std)
