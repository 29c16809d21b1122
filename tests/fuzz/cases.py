"""Valid calls of every public operator, of random sizes (0, 1 and odd ones among them), values and strides."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastwm import ops
from fastwm.ops.linear import linear

Case = tuple[Callable[..., Any], tuple[Any, ...]]

_SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33)


class Draw:
    """Random sizes and tensors of one dtype."""

    def __init__(self, rng: random.Random, dtype: torch.dtype) -> None:
        self.rng, self.dtype = rng, dtype
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def size(self, least: int = 1, most: int = 33) -> int:
        return self.rng.choice([n for n in _SIZES if least <= n <= most])

    def sizes(self, count: int, least: int = 1, most: int = 9) -> tuple[int, ...]:
        return tuple(self.size(least, most) for _ in range(count))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        return self.strided(x.to(self.dtype)).requires_grad_()

    def scale(self, width: int) -> Tensor:
        return self.uniform(width).requires_grad_()

    def uniform(self, *shape: int) -> Tensor:
        return self.strided(torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.dtype))

    def flags(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < 0.3

    def onehot(self, *shape: int) -> Tensor:
        index = torch.randint(shape[-1], shape[:-1], generator=self.generator)
        return torch.nn.functional.one_hot(index, shape[-1]).to(self.dtype)

    def strided(self, x: Tensor) -> Tensor:
        """Equal to x, in memory of another layout."""
        kind = self.rng.randrange(6)
        if kind == 0 and x.dim() > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == 1 and x.dim() > 0:
            return torch.stack([x, x], -1)[..., 0]
        if kind == 2 and x.numel() > 0:
            return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)  # not aligned
        return x

    def dense(self, out: int, inputs: int) -> ops.DenseWeights:
        return ops.DenseWeights(self.weight(out, inputs), self.normal(out), self.scale(out))

    def weight(self, *shape: int) -> Tensor:
        return self.normal(*shape, scale=0.5)

    def layer(self, out: int, inputs: int, norm: bool) -> ops.LayerWeights:
        affine = (self.scale(out), self.normal(out)) if norm else (None, None)
        return ops.LayerWeights(self.weight(out, inputs), self.normal(out), *affine)

    def linear(self, out: int, inputs: int) -> ops.LinearWeights:
        return ops.LinearWeights(self.weight(out, inputs), self.normal(out))

    def mlp(self, inputs: int, outputs: int) -> ops.MLPWeights:
        units, count = self.size(), self.rng.randrange(1, 4)
        layers = tuple(self.dense(units, inputs if i == 0 else units) for i in range(count))
        return ops.MLPWeights(layers, self.linear(outputs, units))


def lambda_return(d: Draw) -> Case:
    shape = d.sizes(1) + d.sizes(d.rng.randrange(3), 0)
    lam = d.rng.choice([0.0, 0.95, d.uniform(*shape)])
    return ops.lambda_return, (d.normal(*shape), d.uniform(*shape), d.normal(*shape), lam)


def norm_act(d: Draw) -> Case:
    x = d.normal(*d.sizes(d.rng.randrange(3), 0), d.size())
    affine = d.normal(x.shape[-1]), d.normal(x.shape[-1])
    if d.rng.random() < 0.5:
        return d.rng.choice([ops.rms_norm, ops.rms_norm_silu]), (x, affine[0])
    return d.rng.choice([ops.layer_norm_silu, ops.layer_norm_elu]), (x, *affine)


def symlog(d: Draw) -> Case:
    return d.rng.choice([ops.symlog, ops.symexp]), (d.normal(*d.sizes(d.rng.randrange(4), 0)),)


def categorical(d: Draw) -> Case:
    shape, unimix = (*d.sizes(d.rng.randrange(3), 0), d.size(), d.size()), d.rng.choice([0.0, 0.01, 0.5])
    logits = d.normal(*shape)
    kind = d.rng.randrange(4)
    if kind == 0:
        return ops.categorical_kl, (logits, d.normal(*shape), unimix, d.rng.choice([0.0, 1.0]))
    if kind == 1:
        return ops.categorical_entropy, (logits, unimix)
    if kind == 2:
        return ops.straight_through_categorical, (logits, d.uniform(*shape), unimix, "gumbel")
    return ops.straight_through_categorical, (logits, d.uniform(*shape[:-1]), unimix)


def mdn(d: Draw) -> Case:
    shape = (*d.sizes(d.rng.randrange(3), 0), d.size(), d.size(most=9))
    joint = d.rng.random() < 0.5
    logits = d.normal(*((*shape[:-2], shape[-1]) if joint else shape))
    mixture = logits, d.normal(*shape), d.normal(*shape)
    if d.rng.random() < 0.5:
        return ops.mdn_nll, (*mixture, d.normal(*shape[:-1]))
    return ops.mdn_sample, (*mixture, 0.7, d.uniform(*logits.shape[:-1]), d.normal(*shape[:-1]))


def two_hot(d: Draw) -> Case:
    bins, batch = 2 * d.size(0) + 1, d.sizes(d.rng.randrange(3), 0)
    logits, edges = d.normal(*batch, bins), torch.linspace(-3, 3, bins, dtype=d.dtype)
    if d.rng.random() < 0.5:
        return ops.two_hot_mean, (logits, edges)
    second = d.normal(*batch) if d.rng.random() < 0.5 else None
    return ops.two_hot_loss, (logits, d.normal(*batch, scale=3), edges, second)


def philox(d: Draw) -> Case:
    streams = torch.randint(-(2**63), 2**63 - 1, (*d.sizes(d.rng.randrange(3), 0), 2), generator=d.generator)
    function = d.rng.choice([ops.philox_bits, ops.philox_uniform])
    return function, (streams, d.size(0), d.rng.choice([0, 5, 2**62]))


def gates(d: Draw) -> Case:
    batch, width = d.sizes(d.rng.randrange(3), 0), d.size()

    def wide(parts: int) -> Tensor:
        return d.normal(*batch, parts * width)

    return d.rng.choice(
        [
            (ops.gru_gates, (wide(3), wide(3), wide(1))),
            (ops.lstm_gates, (wide(4), wide(4), wide(1), 1.0, d.rng.choice(["ifgo", "ijfo"]))),
            (ops.block_gru_gates, (wide(3), wide(1), d.rng.choice([n for n in (1, 2, 4, width) if width % n == 0]))),
            (ops.layernorm_gru_gates, (wide(3), d.normal(3 * width), d.normal(3 * width), wide(1))),
            (ops.planet_gru_reset, (wide(2), wide(1))),
            (ops.planet_gru_update, (d.uniform(*batch, width), wide(1), wide(1))),
        ]
    )


def scan(d: Draw) -> Case:
    (T, B, X), D = (d.size(most=9), d.size(0), d.size(0)), d.size()
    x, h = d.normal(T, B, X), d.normal(B, D)
    first = d.flags(T, B) if d.rng.random() < 0.5 else None

    def weights(gates: int) -> tuple[Any, ...]:
        biases = [d.rng.choice([None, d.normal(gates * D)]) for _ in range(2)]
        return d.weight(gates * D, X), d.weight(gates * D, D), *biases

    kind = d.rng.randrange(4)
    if kind == 0:
        return ops.gru_scan, (x, h, *weights(3), first)
    if kind == 1:
        return ops.lstm_scan, (x, h, d.normal(B, D), *weights(4), first, 1.0, d.rng.choice(["ifgo", "ijfo"]))
    if kind == 2:
        affine = d.rng.choice([None, d.normal(3 * D)]), d.scale(3 * D), d.normal(3 * D)
        return ops.layernorm_gru_scan, (x, h, d.weight(3 * D, X + D), *affine, first, d.rng.choice(["xh", "hx"]))
    cell = d.weight(2 * D, X + D), d.normal(2 * D), d.weight(D, X + D), d.normal(D)
    return ops.planet_gru_scan, (x, h, *cell, first)


class _Core(NamedTuple):
    blocks: int
    D: int
    U: int


def _core(d: Draw) -> _Core:
    blocks = d.rng.choice([1, 2, 4])
    return _Core(blocks, blocks * d.size(most=9), d.size())


def block_gru_scan(d: Draw) -> Case:
    (G, D, U), T, B = _core(d), d.size(most=9), d.size(0)
    J, widths = D // G, d.sizes(d.rng.randrange(1, 3), 0)
    hidden = ops.DenseWeights(d.weight(G, J + (1 + len(widths)) * U, J), d.normal(D), d.scale(D))
    gates = ops.LinearWeights(d.weight(G, J, 3 * J), d.normal(3 * D))
    w = ops.BlockGRUWeights(d.dense(U, D), tuple(d.dense(U, X) for X in widths), (hidden,), gates)
    return ops.block_gru_scan, (tuple(d.normal(T, B, X) for X in widths), d.normal(B, D), w, d.flags(T, B))


def _rssm(d: Draw, core: _Core, S: int, C: int, A: int, E: int) -> ops.RSSMWeights:
    (G, D, U), J = core, core.D // core.blocks
    hidden = ops.DenseWeights(d.weight(G, J + 3 * U, J), d.normal(D), d.scale(D))
    gates = ops.LinearWeights(d.weight(G, J, 3 * J), d.normal(3 * D))
    embeds = d.dense(U, D), d.dense(U, S * C), d.dense(U, A)
    return ops.RSSMWeights(*embeds, hidden, gates, d.dense(U, D + E), d.linear(S * C, U))


def rssm(d: Draw) -> Case:
    core, (T, B), (S, C), (A, E) = _core(d), (d.size(most=5), d.size(0)), d.sizes(2), d.sizes(2, 0)
    D, kind = core.D, d.rng.randrange(3)
    state, uniform = (d.normal(B, D), d.onehot(B, S, C)), d.uniform(T, B, S)
    if kind == 0:
        w = _rssm(d, core, S, C, A, E)
        return ops.rssm_observe, (d.normal(T, B, E), d.normal(T, B, A), d.flags(T, B), *state, uniform, w)
    if kind == 1:
        w = _rssm(d, core, S, C, A, E)
        return ops.rssm_open_loop, (*state, uniform, d.normal(T, B, A), w, d.mlp(D, S * C))
    heads = d.rng.choice([((1, 3),), ((2, 0),), ((1, 1), (3, 0)), ((2, 5), (1, 2))])
    A, draws = sum(n * (c or 1) for n, c in heads), sum(n for n, _ in heads)
    outputs = sum(n * (c or 2) for n, c in heads)
    nets = d.mlp(D, S * C), d.mlp(D + S * C, outputs)
    w, readouts = _rssm(d, core, S, C, A, E), tuple(d.mlp(D + S * C, d.size()) for _ in range(d.rng.randrange(3)))
    noise, actions = d.uniform(T + 1, B, draws), tuple(ops.ActionHead(*head) for head in heads)
    return ops.rssm_imagine, (*state, uniform, noise, w, *nets, actions, 0.01, 0.01, 1e-4, readouts)


def gru_rssm(d: Draw) -> Case:
    T, B, D, U = d.size(most=5), d.size(0), d.size(), d.size()
    (S, C), (A, E) = d.sizes(2), d.sizes(2, 0)
    C = d.rng.choice([0, C])
    cell, norm = d.rng.choice(["gru", "planet_gru", "layernorm_gru"]), d.rng.random() < 0.5
    kind = ops.GRURSSMKind(cell, d.rng.choice(["relu", "elu", "silu"]), C, d.rng.choice(["xh", "hx"]))
    Z, O = S * (C or 1), S * (C or 2)
    which = d.rng.randrange(3)
    heads: tuple[ops.PolicyHead, ...] = ()
    if which == 2:
        kinds = (
            ops.PolicyHead(1, 3, "onehot"),
            ops.PolicyHead(2, 0, "tanh_normal"),
            ops.PolicyHead(3, 0, "trunc_normal"),
        )
        heads = tuple(d.rng.choice(kinds) for _ in range(d.rng.randrange(1, 3)))
        A = sum(head.size * (head.classes or 1) for head in heads)
    cells = {
        "gru": lambda: (d.weight(3 * D, U), d.weight(3 * D, D), d.normal(3 * D), d.normal(3 * D)),
        "planet_gru": lambda: (d.weight(2 * D, U + D), d.normal(2 * D), d.weight(D, U + D), d.normal(D)),
        "layernorm_gru": lambda: (d.weight(3 * D, U + D), d.normal(3 * D), d.scale(3 * D), d.normal(3 * D)),
    }
    w = ops.GRURSSMWeights(
        d.layer(U, Z + A, norm), cells[cell](), d.layer(U, D + E, norm), d.linear(O, U), d.layer(U, D, norm),
        d.linear(O, U),
    )  # fmt: skip
    state = d.normal(B, D), d.onehot(B, S, C) if C else d.normal(B, S)
    noise = d.uniform(T, B, S)
    if which == 0:
        return ops.gru_rssm_observe, (d.normal(T, B, E), d.normal(T, B, A), d.flags(T, B), *state, noise, w, kind)
    if which == 1:
        return ops.gru_rssm_open_loop, (*state, noise, d.normal(T, B, A), w, kind)
    widths = d.sizes(d.rng.randrange(3))
    inputs = (Z + D, *widths)
    actor = tuple(d.layer(out, into, norm) for into, out in zip(inputs, widths))
    out = d.linear(sum(head.size * (head.classes or 2) for head in heads), inputs[-1])
    action_noise = d.uniform(T, B, sum(head.size for head in heads))
    return ops.gru_rssm_imagine, (*state, noise, action_noise, w, kind, actor, out, heads)


def mlp(d: Draw) -> Case:
    batch, D, Z = d.sizes(d.rng.randrange(3), 0), d.size(0), d.size()
    onehot = d.onehot(*batch, Z) if d.rng.random() < 0.5 else None
    return ops.mlp, (d.normal(*batch, D), d.mlp(D + (0 if onehot is None else Z), d.size()), onehot)


def many_rows(d: Draw) -> Case:
    rows, K, N = d.rng.choice([255, 256, 257, 300]), d.size(), d.size()
    weight = d.weight(N, K) if d.rng.random() < 0.5 else d.weight(2, K, N)
    outputs = N if weight.dim() == 2 else 2 * N
    return linear, (d.normal(rows, K), weight, d.rng.choice([None, d.normal(outputs)]))


def rollout(d: Draw) -> Case:
    P, each, Z, H, K = d.size(most=3), d.size(0, most=9), d.size(most=9), d.size(), d.size(most=5)
    A, N = d.rng.choice([1, 3]), P * each
    extra = d.rng.choice([(), ("done",), ("reward", "done")])
    F, inputs = d.rng.choice([Z, Z + H, Z + 2 * H]), Z + A + d.rng.randrange(2)
    outputs = len(extra) + 3 * Z * K
    w = ops.MDNRNNWeights(
        d.weight(4 * H, inputs), d.weight(4 * H, H), d.normal(4 * H), d.weight(outputs, H), d.normal(outputs)
    )
    streams = torch.randint(2**31, (N, 2), generator=d.generator)
    squash = d.rng.choice(["tanh", "car"]) if A == 3 else "tanh"
    bias = d.rng.choice([None, d.normal(P, A)])
    return ops.mdn_rnn_imagine, (
        d.normal(N, Z), d.normal(P, A, F), bias, w, streams, d.size(most=9), extra, 0.9, squash, 1.0,
        d.rng.choice(["ifgo", "ijfo"]), d.rng.random() < 0.5,
    )  # fmt: skip


def laprop(d: Draw) -> Case:
    shapes = [d.sizes(d.rng.randrange(1, 3), 0) for _ in range(d.rng.randrange(4))]
    state = [[(d.normal if i < 2 else d.uniform)(*shape).contiguous() for shape in shapes] for i in range(4)]

    def step(*state: list[Tensor]) -> list[list[Tensor]]:
        params, grads, nu, mu = ([x.detach().clone() for x in xs] for xs in state)
        ops.laprop_step_(params, grads, nu, mu, 5, 0.1)
        return [params, nu, mu]

    return step, tuple(state)


CASES = (
    lambda_return, norm_act, symlog, categorical, mdn, two_hot, philox, gates, scan, block_gru_scan, rssm, gru_rssm,
    mlp, many_rows, rollout, laprop,
)  # fmt: skip
