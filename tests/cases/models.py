"""Heads and world models: whole sequences, with samples inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastwm
from fastwm import ops
from fastwm.nn.gru_rssm import VARIANTS
from fastwm.ops._backend import bf16_products
from fastwm.ops.linear import linear
from tests.cases.case import Case, Draw, register
from tests.cases.pointwise import F16, F32, F64, LEADS, NO_GRADIENT
from tests.cases.recurrent import CHAIN, core

SAMPLES = "the samples' own derivative is straight through"


def settled(noise: int, logits: Callable[[Any], Tensor], unimix: Callable[[tuple[Any, ...]], float]):
    """Noise, argument number `noise`, in the middle of each most likely class, which rounding does not move."""

    def settle(case: Case, args: tuple[Any, ...]) -> tuple[Any, ...]:
        moved, share = args[noise].clone(), unimix(args)
        args = (*args[:noise], moved, *args[noise + 1 :])
        with torch.no_grad(), fastwm.backend("ref"):
            for t in range(len(moved)):
                found = logits(case.operator(*args))[t]
                probs = (1 - share) * found.softmax(-1) + share / found.shape[-1]
                moved[t] = (probs.cumsum(-1) - probs / 2).gather(-1, probs.argmax(-1, keepdim=True))[..., 0]
        return args

    return settle


# Products


def _linear(d: Draw, rows, K=70, N=96, G=None, bias=True):
    weight = d.weight(N, K) if G is None else d.weight(G, K, N // G)
    return d.normal(rows, K), weight, d.normal(N) if bias else None


register(
    Case(
        "linear",
        lambda x, weight, bias: linear(x, weight, bias, bf16_products(x)),
        _linear,
        kernel="linear",
        sizes=[
            dict(rows=260, K=3, N=6), dict(rows=300, bias=False), dict(rows=256, K=1, N=6),
            dict(rows=1100, K=64, N=198), dict(rows=577, K=300, N=600), dict(rows=0), dict(rows=1), dict(rows=255),
        ],
        wide=dict(rows=300),
        shared=[dict(rows=1300, K=130, N=150)],
        rows={},
        ranges=dict(rows=[0, 7, 255, 256, 257, 300], K=(1, 33), N=[6, 12, 30], bias=[False, True]),
        tolerance=1e-11,
        close="tensor",
        precision={F32: 1e-5, F64: 1e-12},
        reduced="autocast",
        batched=True,
        reduced_sizes=[dict(rows=1100, K=64, N=36), dict(rows=577, K=300, N=600)],
        without=CHAIN | {
            "vmap": "it is torch's there: see test_linear.py", "functional_gradients": "as vmap",
            "nan_in_is_nan_out": "a private part of others, which are tested",
            "wrong_arguments": "private: its callers check",
        },
    ),
    {"": {}, "blocks": dict(G=3)},
)  # fmt: skip


# MLP


def _mlp(d: Draw, lead, D=7, latents=(4, 5), U=19, O=11, layers=3, norm="rms", activation="silu", full=False):
    """`latents`: S one-hots of C classes, of which one row, or `full` all, is none. `norm`: rms, layer_norm or none."""
    x, onehot, inputs = d.normal(*lead, D), None, D
    if latents:
        S, C = latents
        onehot = d.data(*lead, S * C) if full else d.onehot(*lead, S, C).flatten(-2)
        onehot.view(-1, S * C)[:1] = d.data(S * C)
        onehot.requires_grad_()
        inputs += S * C
    make = d.dense if norm == "rms" else lambda out, into: d.layer(out, into, norm == "layer_norm")
    hidden = tuple(make(U, U if i else inputs) for i in range(layers))
    return x, ops.MLPWeights(hidden, d.linear(O, U), activation), onehot


_RELU = {"reduced_precision": "the gradient of ReLU counts the signs that rounding flips, in both: see ELU"}
_SIGNS = dict(without=CHAIN | _RELU)
_ROWS = dict(lead=(1100,), D=40, U=64, O=255)
register(
    Case(
        "mlp",
        ops.mlp,
        _mlp,
        kernel="mlp",
        sizes=[
            dict(lead=(3,), D=2, latents=(1, 3), U=4, O=2, layers=2), dict(lead=(37,)), dict(lead=(37,), layers=1),
            dict(lead=(37,), latents=None), dict(lead=()), dict(lead=(0,)), dict(lead=(3, 0, 2)),
            dict(lead=(2, 3, 5), O=1), dict(lead=(257,), U=33, D=1, layers=2), _ROWS,
        ],
        wide=dict(lead=(300,), D=70, U=96),
        shared=[dict(lead=(1300,), D=40, U=48, O=33), dict(lead=(600,), D=800, U=256, O=33)],
        rows=dict(lead=(37,), D=6, latents=(2, 4), U=7, O=3, layers=2, full=True),  # what is 0 is not read
        ranges=dict(
            lead=LEADS, D=(0, 33), latents=[None, (1, 1), (3, 5)], U=(1, 33), O=(1, 33), layers=[1, 2, 3],
        ),
        tolerance=1e-10,
        close="tensor",
        precision={F32: 1e-5, F64: 1e-13},
        reduced="autocast",
        batched=True,
        reduced_sizes=[
            dict(lead=(rows,), D=64, latents=latents, U=U, O=45)
            for rows, U, latents in [(7, 19, (4, 5)), (37, 32, (32, 4)), (37, 32, (9, 15)), (1100, 64, (4, 5)),
                                     (1100, 64, None)]
        ],
        wrong=[
            (lambda x, w, z: (x[:, :1], w, z), r"mlp.layers\[0\].weight"),
            (lambda x, w, z: (x, w, z.float()), "like x"),
            (lambda x, w, z: (x, w, z[:1]), "like x"),
            (lambda x, w, z: (x, w._replace(layers=()), z), "at least one layer"),
            (lambda x, w, z: (x, w._replace(out=w.out._replace(weight=w.out.weight[:, :2])), z), "mlp.out.weight"),
            (lambda x, w, z: (x, w._replace(activation="tanh"), z), "activation silu"),
            (lambda x, w, z: (x.to("meta"), w, z), "meta"),
        ],
        without=CHAIN,
    ),
    {
        "": {},
        "layer_norm-elu": dict(norm="layer_norm", activation="elu"),
        "layer_norm-silu": dict(norm="layer_norm", activation="silu", alike=True),
        "layer_norm-relu": dict(norm="layer_norm", activation="relu", alike=True, **_SIGNS),
        "plain-elu": dict(norm="none", activation="elu"),
        "plain-silu": dict(norm="none", activation="silu", alike=True),
        "plain-relu": dict(norm="none", activation="relu", alike=True, **_SIGNS),
    },
)  # fmt: skip


# DreamerV3's world model


def rssm_weights(d: Draw, deter: int, hidden: int, stoch: int, classes: int, blocks: int, action: int, tokens: int):
    layer, gates = core(d, deter, hidden, blocks, 3)
    embeds = (d.dense(hidden, width) for width in (deter, stoch * classes, action))
    return ops.RSSMWeights(*embeds, layer, gates, d.dense(hidden, deter + tokens), d.linear(stoch * classes, hidden))


def _observe(d: Draw, T, B, block=4, hidden=6, stoch=4, classes=5, blocks=2, resets=0.2, action=3, tokens=7):
    deter = block * blocks
    state = d.data(B, deter), d.data(B, stoch, classes)
    inputs = d.normal(T, B, tokens), d.normal(T, B, action, scale=2), d.flags(T, B, share=resets)
    uniform = d.uniform(T, B, stoch).to(d.dtype)
    return *inputs, *state, uniform, rssm_weights(d, deter, hidden, stoch, classes, blocks, action, tokens)


SIZE1M = dict(block=64, hidden=64, stoch=32, classes=4, blocks=8)
ODD = dict(block=64, hidden=40, stoch=5, classes=7, blocks=3)  # 5 x 7 classes: tensor cores read four at once
_DEEP = dict(block=768, hidden=272, stoch=9, classes=16, blocks=2)  # every product takes a CUDA block several turns
register(
    Case(
        "rssm_observe",
        ops.rssm_observe,
        _observe,
        kernel="rssm_observe",
        sizes=[
            dict(T=3, B=2), dict(T=1, B=0), dict(T=1, B=1, resets=1.0), dict(T=1, B=3, resets=0.0),
            dict(T=3, B=16), dict(T=5, B=33), dict(T=64, B=2), dict(T=3, B=17, **SIZE1M),
        ],
        wide=dict(T=6, B=21, block=32, hidden=40, stoch=5, classes=7, blocks=3),
        shared=[dict(T=9 if B == 20 else 3, B=B, **SIZE1M) for B in (3, 20, 200)],
        rows=dict(T=4, B=37, action=2),
        ranges=dict(T=(1, 5), B=(0, 5), blocks=(1, 4), block=(1, 9), hidden=(1, 33), stoch=(1, 5), classes=(1, 9),
                    action=(0, 5), tokens=(0, 5)),
        close="tensor",
        precision={F32: 1e-5, F64: 1e-12},
        reduced="autocast",
        batched=True,
        reduced_sizes=[
            dict(T=1, B=1, **ODD), dict(T=3, B=7, **ODD), dict(T=3, B=16, **ODD | dict(classes=8)),
            dict(T=4, B=37, **ODD | dict(classes=8)), dict(T=2, B=3, **_DEEP), dict(T=5, B=37, **SIZE1M),
        ],
        settle=settled(5, lambda outputs: outputs[3], lambda args: 0.01),
        threads="rounding",
        wrong=[
            (lambda *a: (a[0][:0], *a[1:]), "T >= 1"),
            (lambda *a: (a[0], a[1][:, :1], *a[2:]), r"action \[3, 2, 3\].*\[3, 1, 3\]"),
            (lambda *a: (*a[:2], a[2].float(), *a[3:]), r"is_first \[\d, \d\] torch.bool"),
            (lambda *a: (*a[:3], a[3][:, :4], *a[4:]), "deter"),
            (lambda *a: (*a[:4], a[4].flatten(1), *a[5:]), r"stoch \[B, S, C\]"),
            (lambda *a: (*a[:4], a[4].float(), *a[5:]), "one dtype"),
            (lambda *a: (*a[:5], a[5][:1], a[6]), "uniform"),
            (lambda *a: (*a[:5], a[5].to("meta"), a[6]), "meta"),
        ],
        without={**CHAIN, "gradcheck": SAMPLES},
    )
)  # fmt: skip


def _imagine(d: Draw, H, N, heads=((6, 0), (1, 2), (1, 2), (1, 3)), block=4, hidden=6, stoch=4, classes=5, blocks=3,
             layers=3, policy_unimix=0.1, readouts=2):  # fmt: skip
    deter, latent = block * blocks, stoch * classes
    A, outputs = (sum(n * (c or other) for n, c in heads) for other in (1, 2))
    start = d.data(N, deter), d.onehot(N, stoch, classes), d.uniform(H, N, stoch).to(d.dtype)
    noise = torch.cat([(d.uniform(H + 1, N, n) if c else d.data(H + 1, N, n)).to(d.dtype) for n, c in heads], -1)
    w = rssm_weights(d, deter, hidden, stoch, classes, blocks, A, 3)
    nets = d.mlp(deter, latent, hidden, layers), d.mlp(deter + latent, outputs, 11, layers)
    more = tuple(d.mlp(deter + latent, 3 + i, 5 + i, 1 + i) for i in range(readouts))
    return *start, noise, w, *nets, tuple(ops.ActionHead(*head) for head in heads), 0.01, policy_unimix, 1e-4, more


VALUES_AND_ISA = ("equals_reference", "any_sizes", "every_instruction_set")
_HEADS = {
    "": dict(),
    "continuous": dict(heads=((6, 0),), only=VALUES_AND_ISA),
    "discrete": dict(heads=((1, 4),), only=VALUES_AND_ISA),
    "multidiscrete": dict(heads=((1, 3), (1, 5), (1, 2)), layers=1, policy_unimix=0.0, wrong=(), alike=True),
}
_WIDE_IMAGINE = dict(H=3, N=37, block=32, hidden=40, stoch=5, classes=7, blocks=3)
register(
    Case(
        "rssm_imagine",
        ops.rssm_imagine,
        _imagine,
        kernel="rssm_imagine",
        sizes=[dict(H=4, N=7), dict(H=1, N=1), dict(H=2, N=150), dict(H=3, N=0)],
        wide=_WIDE_IMAGINE,
        shared=[dict(H=5, N=260, block=64, hidden=24, blocks=3)],
        rows=dict(H=4, N=37),
        ranges=dict(H=(1, 5), N=(0, 9), block=(1, 9), hidden=(1, 33), stoch=(1, 5), classes=(1, 9), blocks=[1, 2, 4],
                    layers=[1, 2, 3], readouts=[0, 1, 2],
                    heads=[((1, 3),), ((2, 0),), ((1, 1), (3, 0)), ((2, 5), (1, 2))]),
        precision={F32: 2e-5, F64: 1e-12},
        close="tensor",
        reduced="autocast",
        batched=True,
        without={**CHAIN, "gradcheck": "the dream has no gradient, and the readouts are MLPs",
                 "reduced_precision": "one step is compared, so that no flipped sample parts trajectories: "
                 "see test_rssm_imagine.py"},
        wrong=[
            (lambda *a: (a[0][:, :3], *a[1:]), "deter|blocks|embed"),
            (lambda *a: (a[0], a[1].float(), *a[2:]), "one dtype"),
            (lambda *a: (*a[:2], a[2][:0], *a[3:]), "H >= 1"),
            (lambda *a: (*a[:3], a[3][:-1], *a[4:]), r"noise \[5, 7, 9\].*\[4, 7, 9\]"),
            (lambda *a: (*a[:3], a[3].to("meta"), *a[4:]), "meta"),
            (lambda *a: (*a[:-1], [a[-1][0]] * 8), "at most 7 readouts, got 8"),
            (lambda *a: (*a[:-1], [a[-1][0], a[5]]), r"readout 2\.layers\[0\]\.weight \[6, 32\]"),
        ],
    ),
    _HEADS,
)  # fmt: skip


def _open_loop(d: Draw, H, N, action=3, block=4, hidden=6, stoch=4, classes=5, blocks=3, layers=2):
    deter = block * blocks
    start = d.normal(N, deter), d.onehot(N, stoch, classes), d.uniform(H, N, stoch).to(d.dtype)
    w = rssm_weights(d, deter, hidden, stoch, classes, blocks, action, 3)
    return *start, d.normal(H, N, action, scale=2), w, d.mlp(deter, stoch * classes, hidden, layers)


register(
    Case(
        "rssm_open_loop",
        lambda *args: torch.no_grad()(ops.rssm_open_loop)(*args),
        _open_loop,
        kernel="rssm_imagine",
        sizes=[dict(H=4, N=7), dict(H=1, N=1), dict(H=2, N=150, layers=1), dict(H=3, N=0)],
        wide=_WIDE_IMAGINE,
        shared=[dict(H=5, N=260, block=64, hidden=24, blocks=3)],
        rows=dict(H=4, N=37),
        ranges=dict(H=(1, 5), N=(0, 9), block=(1, 9), hidden=(1, 33), stoch=(1, 5), classes=(1, 9), blocks=[1, 2, 4],
                    layers=[1, 2, 3], action=(0, 5)),
        reduced="autocast",
        batched=True,
        precision={F32: 2e-5, F64: 1e-12},
        without={**CHAIN, **NO_GRADIENT, "functional_gradients": "where a gradient is wanted the reference serves",
                 "nothing_is_saved_without_gradients": "nothing ever is",
                 "second_derivative_is_refused": "the reference serves gradients"},
        wrong=[
            (lambda *a: (*a[:3], a[3][..., :-1], *a[4:]), r"action \[\d, \d+, 3\]|H, N, A|embed_action"),
            (lambda *a: (*a[:3], a[3][0], *a[4:]), r"action \[H, N, A\]"),
        ],
    )
)  # fmt: skip


# The world models of PlaNet, Dreamer V1, V2 and V3's first version


def cell(d: Draw, name: str, D: int, U: int, bias: bool = True) -> tuple[Tensor | None, ...]:
    def vector(width: int, optional: bool = True) -> Tensor | None:
        return d.normal(width, scale=0.3) if bias or not optional else None

    if name == "gru":
        return d.weight(3 * D, U), d.weight(3 * D, D), vector(3 * D), vector(3 * D)
    if name == "planet_gru":
        return d.weight(2 * D, U + D), vector(2 * D, False), d.weight(D, U + D), vector(D, False)
    return d.weight(3 * D, U + D), vector(3 * D), d.scale(3 * D), d.normal(3 * D, scale=0.3)


def gru_rssm_weights(d: Draw, kind: ops.GRURSSMKind, D, U, S, A, E, norm: bool, bias: bool = True):
    Z, O = S * (kind.classes or 1), S * (kind.classes or 2)
    return ops.GRURSSMWeights(
        d.layer(U, Z + A, norm, bias), cell(d, kind.cell, D, U, bias), d.layer(U, D + E, norm, bias), d.linear(O, U),
        d.layer(U, D, norm, bias), d.linear(O, U),
    )  # fmt: skip


def _state(d: Draw, N, D, S, C, data: bool = True) -> tuple[Tensor, Tensor]:
    latent = (S, C) if C else (S,)
    return (d.data if data else d.normal)(N, D), (d.data if data else d.normal)(N, *latent)


def _noise(d: Draw, T, N, S, C) -> Tensor:
    return d.uniform(T, N, S).to(d.dtype) if C else d.data(T, N, S)


def _gru_observe(d: Draw, kind, T, B, D=9, U=6, S=4, C=None, norm=False, bias=True, resets=0.2, A=3, E=7):
    kind = kind if C is None or not kind.classes else kind._replace(classes=C)
    inputs = d.normal(T, B, E), d.normal(T, B, A), d.flags(T, B, share=resets)
    w = gru_rssm_weights(d, kind, D, U, S, A, E, norm, bias)
    return *inputs, *_state(d, B, D, S, kind.classes), _noise(d, T, B, S, kind.classes), w, kind


_K = ops.GRURSSMKind
KINDS = {
    "planet": _K("planet_gru", "relu"), "v1": _K("gru", "elu"), "v2": _K("layernorm_gru", "elu", 5),
    "planet-elu": _K("planet_gru", "elu"), "planet-classes": _K("planet_gru", "relu", 5),
    "planet-elu-classes": _K("planet_gru", "elu", 5), "v1-classes": _K("gru", "elu", 5), "v1-silu": _K("gru", "silu"),
    "v1-silu-classes": _K("gru", "silu", 5), "v2-gaussian": _K("layernorm_gru", "elu"),
    "v2-mixed": _K("layernorm_gru", "relu", 5, "xh", 0.1), "v3_2023": _K("layernorm_gru", "silu", 5, "hx", 0.01),
}  # fmt: skip
VALUES = ("equals_reference", "nan_in_is_nan_out")  # of forms that share their cell with one tested whole
_WRONG_OBSERVE = [
    (lambda *a: (a[0][:0], *a[1:]), "T >= 1"),
    (lambda *a: (a[0][..., :4], *a[1:]), r"post.weight \[6, 13\]"),
    (lambda *a: (a[0], a[1][:, :1], *a[2:]), r"action \[3, 2, 3\].*\[3, 1, 3\]"),
    (lambda *a: (a[0], a[1][..., :2], *a[2:]), r"input.weight \[6, 22\].*\[6, 23\]"),
    (lambda *a: (*a[:2], a[2].float(), *a[3:]), r"is_first \[\d, \d\] torch.bool"),
    (lambda *a: (*a[:2], a[2][:2], *a[3:]), r"is_first \[3, 2\]"),
    (lambda *a: (*a[:3], a[3][:, :4], *a[4:]), r"cell.weight \[12, 10\]"),
    (lambda *a: (*a[:4], a[4].flatten(1), *a[5:]), r"stoch \[B, S, C\]"),
    (lambda *a: (*a[:4], a[4][..., :3], *a[5:]), r"stoch \[2, 4, 5\]"),
    (lambda *a: (*a[:4], a[4].float(), *a[5:]), "one dtype"),
    (lambda *a: (*a[:5], a[5][:1], *a[6:]), "noise"),
    (lambda *a: (*a[:5], a[5].to("meta"), *a[6:]), "meta"),
    (lambda *a: (*a[:6], a[6]._replace(cell=a[6].cell[:3]), a[7]), "four parameters"),
    (lambda *a: (*a[:6], a[6]._replace(cell=(a[6].cell[0][1:], *a[6].cell[1:])), a[7]), r"cell.weight \[27, 15\]"),
    (lambda *a: (*a[:6], a[6]._replace(post_stats=a[6].post_stats._replace(bias=a[6].input.bias)), a[7]),
     r"post_stats.bias \[20\]"),
    (lambda *a: (*a[:6], a[6]._replace(input=a[6].input._replace(scale=a[6].input.bias[1:])), a[7]),
     r"input.scale \[6\]"),
]  # fmt: skip
_WRONG_KIND = [
    (dict(activation="xh"), "kind.activation is one of relu, elu, silu, not 'xh'"),
    (dict(order="relu"), "kind.order is one of xh, hx, not 'relu'"),
    (dict(cell="lstm"), "kind.cell is one of gru, planet_gru, layernorm_gru, not 'lstm'"),
    (dict(unimix=1.5), "0 <= unimix < 1"),
]


def _kinds(at: int):
    """Wrong kinds, argument number `at`."""
    return [
        (lambda *a, changed=changed: (*a[:at], a[at]._replace(**changed), *a[at + 1 :]), message)
        for changed, message in _WRONG_KIND
    ]


_GRU_WIDE = dict(D=200, U=136, S=24)  # weights enough for threads to split the columns
_GRU_OBSERVE_WITHOUT = {**CHAIN, "gradcheck": SAMPLES}


def _observe_form(name: str, kind: ops.GRURSSMKind) -> dict[str, Any]:
    settle = settled(5, lambda outputs: outputs[2], lambda args: args[7].unimix) if kind.classes else None
    form: dict[str, Any] = dict(kind=kind, settle=settle, alike=name == "v1")
    if name in ("planet", "v1", "v2"):
        return form | dict(
            wrong=_WRONG_OBSERVE + _kinds(7) if name == "v2" else (),
            without=_GRU_OBSERVE_WITHOUT | (_RELU if name == "planet" else {}),
        )
    few = [dict(T=6, B=5, norm=True), dict(T=6, B=5, norm=False)]
    if name == "v3_2023":  # one row's error is luck
        form["reduced_sizes"] = [dict(T=T, B=B, D=96, U=70, S=5, norm=True) for T, B in [(1, 3), (3, 16), (4, 37)]]
    return form | dict(sizes=few, only=(*VALUES, *(["reduced_precision"] if name in ("planet-elu", "v3_2023") else [])))


register(
    Case(
        "gru_rssm_observe",
        ops.gru_rssm_observe,
        _gru_observe,
        kernel="gru_rssm_observe",
        sizes=[
            dict(T=3, B=2), dict(T=6, B=5, norm=True), dict(T=5, B=3, bias=False), dict(T=1, B=1, resets=1.0),
            dict(T=1, B=3, resets=0.0), dict(T=3, B=64, resets=0.3), dict(T=64, B=2), dict(T=2, B=300), dict(T=2, B=0),
        ],
        wide=dict(T=6, B=21, D=97, U=40, S=5, norm=True),
        shared=[dict(T=9 if B == 20 else 3, B=B, **_GRU_WIDE) for B in (3, 20, 200)],
        rows=dict(T=4, B=37, D=8),
        ranges=dict(T=(1, 7), B=(0, 5), D=(1, 33), U=(1, 33), S=(1, 5), C=(1, 9), norm=[False, True],
                    resets=[0.0, 0.3, 1.0], A=(0, 5), E=(0, 5)),
        tolerance=1e-11,
        close="tensor",
        precision={F32: 2e-5, F64: 1e-12},
        reduced="autocast",
        batched=True,
        reduced_sizes=[dict(T=T, B=B, D=96, U=70, S=5, norm=True) for T, B in [(1, 1), (3, 16), (4, 37)]],
        threads="rounding",
        without=_GRU_OBSERVE_WITHOUT,
    ),
    {name: _observe_form(name, kind) for name, kind in KINDS.items()},
)  # fmt: skip


def _gru_open_loop(d: Draw, kind, H, N, D=6, U=5, S=3, C=None, norm=False, A=3):
    kind = kind if C is None or not kind.classes else kind._replace(classes=C)
    start, noise = _state(d, N, D, S, kind.classes, data=False), _noise(d, H, N, S, kind.classes)
    return *start, noise, d.normal(H, N, A), gru_rssm_weights(d, kind, D, U, S, A, 2, norm), kind


# kind, and whether its dense layers have norms
MODELS: dict[str, tuple[ops.GRURSSMKind, bool]] = {
    "planet": (VARIANTS["planet"], False),
    "v1": (VARIANTS["dreamer_v1"], False),
    "v2": (VARIANTS["dreamer_v2"]._replace(classes=3), False),
    "v3_2023": (VARIANTS["dreamer_v3_2023"]._replace(classes=3), True),
    "v1-classes": (_K("gru", "relu", classes=4), True),
    "planet-classes": (_K("planet_gru", "silu", classes=2, unimix=0.1), False),
    "v2-gaussian": (_K("layernorm_gru", "elu"), False),
}
_WHOLE = ("planet", "v1", "v2", "v3_2023")
_WRONG_STATE = [
    (lambda *a: (a[0][:, :3], *a[1:]), "expected cell"),
    (lambda *a: (a[0], a[1].float(), *a[2:]), "one dtype"),
    (lambda *a: (a[0], a[1][..., 0], *a[2:]), r"stoch \[N, S, C\]"),
    (lambda *a: (*a[:2], a[2][:0], *a[3:]), "H >= 1"),
    (lambda *a: (*a[:2], a[2][:, :, :2], *a[3:]), r"noise \[4, 7, 3\]"),
    (lambda *a: (*a[:2], a[2].to("meta"), *a[3:]), "meta"),
    (lambda *a: (*a[:3], a[3][:-1], *a[4:]), r"\[4, 7, .*\[3, 7"),
    (lambda *a: (*a[:3], a[3][..., :-1], *a[4:]), "expected (input|action_noise)"),
    *_kinds(5),
]
_MODEL = dict(
    sizes=[dict(H=4, N=7), dict(H=1, N=1), dict(H=15, N=3), dict(H=2, N=150), dict(H=3, N=0)],
    wide=dict(H=2, N=37, D=50, U=40, S=5),
    shared=[dict(H=5, N=300, D=40, U=40)],
    rows=dict(H=4, N=37, D=8),
    ranges=dict(H=(1, 5), N=(0, 9), D=(1, 33), U=(1, 33), S=(1, 5), C=(1, 9), norm=[False, True]),
    tolerance=1e-9,
    close="tensor",
    precision={F32: 3e-5, F64: 1e-11},
    reduced="autocast",
    batched=True,
    threads="rounding",
)  # fmt: skip
_STEPS = {"reduced_precision": "a flipped sample parts trajectories: see test_gru_rssm_open_loop.py"}


def _model_form(name: str, kind: ops.GRURSSMKind, norm: bool) -> dict[str, Any]:
    form: dict[str, Any] = dict(kind=kind, norm=norm, alike=name in ("v1", "v3_2023"))
    return form | dict(
        wrong=_WRONG_STATE if name == "v2" else (), **({} if name in _WHOLE else dict(only=("equals_reference",)))
    )


register(
    Case(
        "gru_rssm_open_loop",
        ops.gru_rssm_open_loop,
        _gru_open_loop,
        kernel="gru_rssm_observe",
        **_MODEL,
        without={**CHAIN, **_STEPS, "gradcheck": SAMPLES,
                 "nothing_is_saved_without_gradients": "another operator serves where no gradient is wanted"},
    ),
    {name: _model_form(name, *model) for name, model in MODELS.items()},
)  # fmt: skip

HEADS = {
    "onehot": (ops.PolicyHead(2, 3, "onehot"),),
    "tanh_normal": (ops.PolicyHead(2, 0, "tanh_normal", 1e-4, 0.7),),
    "trunc_normal": (ops.PolicyHead(3, 0, "trunc_normal"),),
    "all": (ops.PolicyHead(1, 4, "onehot"), ops.PolicyHead(2, 0, "trunc_normal", 0.2),
            ops.PolicyHead(1, 0, "tanh_normal")),
}  # fmt: skip


def _gru_imagine(d: Draw, kind, H, N, D=6, U=5, S=3, C=None, norm=False, heads="all", units=(7, 7)):
    """The model is a fixed function here: the actor alone has a gradient."""
    kind = kind if C is None or not kind.classes else kind._replace(classes=C)
    parts = HEADS[heads] if isinstance(heads, str) else heads
    A = sum(head.size * (head.classes or 1) for head in parts)
    start, noise = _state(d, N, D, S, kind.classes), _noise(d, H, N, S, kind.classes)
    draws = [d.data(H, N, h.size) if h.dist == "tanh_normal" else d.uniform(H, N, h.size).to(d.dtype) for h in parts]
    w = gru_rssm_weights(d, kind, D, U, S, A, 2, norm)
    fixed = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, w)
    widths = (S * (kind.classes or 1) + D, *units)
    actor = tuple(d.layer(out, into, norm) for into, out in zip(widths, units))
    out = d.linear(sum(h.size * (h.classes or 2) for h in parts), widths[-1])
    return *start, noise, torch.cat(draws, -1), fixed, kind, actor, out, parts


_WRONG_POLICY = [
    (lambda *a: (*a[:8], ()), "needs a head"),
    (lambda *a: (*a[:8], (ops.PolicyHead(2, 0, "onehot"), *a[8])), "heads with classes"),
    (lambda *a: (*a[:6], a[6][1:], *a[7:]), r"actor\[0\]"),
    (lambda *a: (*a[:6], (a[6][0], a[6][1]._replace(weight=a[6][1].weight[:, 1:])), *a[7:]), r"actor\[1\].weight"),
    (lambda *a: (*a[:7], ops.LinearWeights(a[7].weight[1:], a[7].bias[1:]), a[8]), "actor_out"),
]  # fmt: skip
register(
    Case(
        "gru_rssm_imagine",
        ops.gru_rssm_imagine,
        _gru_imagine,
        kernel="gru_rssm_imagine",
        **_MODEL
        | dict(
            sizes=[
                dict(H=4, N=7), dict(H=1, N=1), dict(H=15, N=3), *(dict(H=4, N=7, heads=heads) for heads in HEADS),
                # Several parts of rows, columns beyond a panel, chunks of steps that do not divide the horizon; layers
                # of unlike widths, and none, which no kernel serves.
                *(dict(H=H, N=N, units=units, D=37, U=34, S=9) for H, N, units in [
                    (5, 37, ()), (3, 300, (40,)), (5, 37, (33, 33, 33)), (2, 3, (33, 17)), (2, 0, (7,)),
                ]),
            ],
            ranges=_MODEL["ranges"] | dict(heads=list(HEADS), units=[(), (5,), (7, 7), (7, 1)]),
            rows=dict(H=4, N=37, D=8, units=(7,)),
        ),
        without={**CHAIN, **_STEPS, "gradcheck": SAMPLES},
    ),
    {
        name: form | (dict(wrong=_WRONG_STATE + _WRONG_POLICY) if name == "v2" else {})
        for name, form in ((name, _model_form(name, *model)) for name, model in MODELS.items())
    },
)  # fmt: skip


# World Models' dreams


def _rollout(d: Draw, P=3, each=4, Z=5, H=12, K=5, steps=9, reads="zch", extra=(), squash="tanh", restart=True,
             biased=True, order="ijfo", trajectories=True):  # fmt: skip
    A, N, outputs = 3 if squash == "car" else 1, P * each, len(extra) + 3 * Z * K
    features = {"z": Z, "zh": Z + H, "zch": Z + 2 * H}[reads]
    w = ops.MDNRNNWeights(
        d.weight(4 * H, Z + A + restart), d.weight(4 * H, H), d.normal(4 * H, scale=0.3), d.weight(outputs, H),
        d.normal(outputs, scale=0.3),
    )  # fmt: skip
    if "done" in extra:
        with torch.no_grad():
            w.out_weight[extra.index("done")] *= 4
            w.out_bias[extra.index("done")] = -1
    stream = torch.stack([torch.full((N,), 7), torch.arange(N) << 32], -1)
    z, controllers, bias = d.data(N, Z), d.weight(P, A, features).detach(), d.data(P, A) if biased else None
    return z, controllers, bias, w, stream, steps, extra, 1.15, squash, 1.0, order, trajectories


def _change(**changed: Callable[[Any], Any]):
    """Changes of a rollout's arguments by name."""
    names = ("z", "controllers", "bias", "w", "stream", "steps", "extra", "temperature", "squash", "forget_bias",
             "order")  # fmt: skip
    return lambda *args: tuple(changed[name](x) if name in changed else x for name, x in zip(names, args))


_WRONG_ROLLOUTS = [
    (_change(z=lambda z: z.half()), "float32 or float64"),
    (_change(z=lambda z: z[0]), r"z0 \[N, Z\]"),
    (_change(z=lambda z: z[:-1], stream=lambda s: s[:-1]), "divide among the controllers, got N = 11, P = 3"),
    (_change(controllers=lambda c: c[..., :-1]), "controllers that read z, h and c, got F = 28"),
    (_change(controllers=lambda c: c[:, :2], bias=lambda b: b[:, :2]), "three actions of a car, got A = 2"),
    (_change(bias=lambda b: b[:, :2]), "controller_bias"),
    (_change(w=lambda w: w._replace(weight_ih=w.weight_ih[:, 2:])), "z, the action and maybe a flag"),
    (_change(w=lambda w: w._replace(bias=w.bias.float())), "expected bias"),
    (_change(w=lambda w: w._replace(out_bias=w.out_bias[1:])), r"b_out \[outputs\]"),
    (_change(stream=lambda s: s[:, :1]), "seed_offset"),
    (_change(stream=lambda s: s.int()), "seed_offset"),
    (_change(steps=lambda _: 0), "expected steps >= 1, got steps = 0"),
    (_change(extra=lambda _: ("done",)), "3 Z K of the mixtures"),
    (_change(extra=lambda _: ("end",)), "extra holds"),
    (_change(extra=lambda _: ("done", "done")), "extra holds"),
    (_change(temperature=lambda _: 0.0), "temperature"),
    (_change(squash=lambda _: "sigmoid"), "squash"),
    (_change(order=lambda _: "ifog"), "order"),
]  # fmt: skip
_CAR, _DOOM = dict(squash="car", restart=False), dict(extra=("done",), biased=False)
register(
    Case(
        "mdn_rnn_imagine",
        ops.mdn_rnn_imagine,
        _rollout,
        kernel="mdn_rnn_imagine",
        sizes=[dict(steps=1)],
        wide=dict(Z=20, H=50, each=10, steps=4),
        shared=[dict(P=64, each=16, Z=6, H=35, steps=20)],
        rows=dict(P=37, each=1, Z=3, H=6, steps=4),
        ranges=dict(
            P=(1, 3), each=(0, 9), Z=(1, 9), H=(1, 33), K=(1, 5), steps=(1, 9), reads=["z", "zh", "zch"],
            extra=[(), ("done",), ("reward", "done")], squash=["tanh", "car"], restart=[False, True],
            biased=[False, True], order=["ifgo", "ijfo"], trajectories=[False, True],
        ),
        tolerance=1e-4,
        precision={F32: 5e-5, F64: 5e-5},
        reduced="autocast",
        batched=True,
        without={**CHAIN, **NO_GRADIENT, "nothing_is_saved_without_gradients": "it has no gradient",
            "equals_reference": "both draw the same normal numbers, rounded differently: see test_mdn_rnn_imagine.py"},
    ),
    {"car": _CAR | dict(wrong=_WRONG_ROLLOUTS), "doom": _DOOM, "reward": dict(extra=("reward", "done"), alike=True)},
)  # fmt: skip


# The optimiser's step


def _laprop(params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], step: int):
    """In place of copies, which it returns."""
    params, grads, nu, mu = ([x.detach().clone() for x in xs] for xs in (params, grads, nu, mu))
    ops.laprop_step_(params, grads, nu, mu, step, 1e-2, (0.9, 0.999), 1e-20, 0.3, 1e-3, 10)
    return params, nu, mu


def _lists(d: Draw, shapes, step=3):
    """params, grads (every third one small enough not to be clipped), nu, mu."""
    params, grads, nu, mu = ([d.data(*shape) for shape in shapes] for _ in range(4))
    return params, [0.1 * g if i % 3 == 0 else g for i, g in enumerate(grads)], [n.square() for n in nu], mu, step


_SHAPES = [(), (3,), (0, 2), (5, 7), (16384,), (40_000,), (2, 131_073)]
register(
    Case(
        "laprop_step_",
        _laprop,
        _lists,
        kernel="laprop_step_",
        sizes=[dict(shapes=[(3,), (2, 2)]), *(dict(shapes=_SHAPES, step=step) for step in (0, 3, 5000))],
        wide=dict(shapes=_SHAPES[:5]),
        shared=[dict(shapes=[*_SHAPES, *[(1000,)] * 40])],
        rows={},
        ranges=dict(shapes=[[], [(3,)], [(0, 3), (5, 1)], [(2, 2), (7,), ()]], step=(0, 33)),
        precision={F32: 1e-5, F64: 1e-11, F16: 3e-2},
        reduced="plain",
        without=NO_GRADIENT | {
            "vmap": "it changes its arguments", "functional_gradients": "it has no gradient",
            "nan_in_is_nan_out": "clipping joins the numbers of a tensor: see test_laprop.py",
            "nothing_is_saved_without_gradients": "it has no gradient",
            "autocast": "autocast does not reach optimisers", "captures_into_a_cuda_graph": "see test_laprop.py",
        },
    )
)  # fmt: skip
