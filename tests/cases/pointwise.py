"""Operators over independent rows or columns."""

import torch

from fastwm import ops
from tests.cases.case import Case, Draw, register

F16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
LEADS = [(), (1,), (3,), (7,), (0,), (2, 3), (2, 0), (4, 1)]
NO_GRADIENT = dict.fromkeys(
    (
        "gradcheck", "second_derivative_is_refused", "reference_is_differentiable_twice", "only_what_needs_a_gradient",
        "functional_gradients", "gradients_of_one_output",
    ),
    "it has no gradient",
)  # fmt: skip


# lambda_return


def _lambda_return(d: Draw, T: int, lead: tuple[int, ...], lam: float | str = 0.95):
    shape = (T, *lead)
    lams = d.uniform(*shape).to(d.dtype) if isinstance(lam, str) else lam
    return (d.uniform(*shape).to(d.dtype).requires_grad_(), d.uniform(*shape).to(d.dtype).requires_grad_(),
            d.uniform(*shape).to(d.dtype).requires_grad_(), lams)  # fmt: skip


register(
    Case(
        "lambda_return",
        ops.lambda_return,
        _lambda_return,
        kernel="lambda_return",
        sizes=[
            dict(T=4, lead=(3,)), dict(T=1, lead=()), dict(T=1, lead=(1,)), dict(T=15, lead=(37,)),
            dict(T=3, lead=(2, 5)), dict(T=6, lead=(700,)), dict(T=4, lead=(0,)),
        ],
        wide=dict(T=9, lead=(77,)),
        shared=[dict(T=15, lead=(4099,))],
        rows=dict(T=4, lead=(37,)),
        ranges=dict(T=(1, 17), lead=LEADS),
        precision={F32: 1e-5, F64: 1e-12, F16: 5e-2},
        reduced_sizes=[dict(T=15, lead=(257,))],
        wrong=[
            (lambda r, c, v, _: (r[:0], c[:0], v[:0]), r"T >= 1.*\[0, 3\]"),
            (lambda r, c, v, _: (r.sum(), c.sum(), v.sum()), "T >= 1"),
            (lambda r, c, v, _: (r, c[:3], v), r"reward \[4, 3\].*cont \[3, 3\]"),
            (lambda r, c, v, _: (r, c, v.float()), r"torch.float64.*next_value.*torch.float32"),
            (lambda r, c, v, _: (r, c.to("meta"), v), "cont.*meta"),
            (lambda r, c, v, _: (r.long(), c.long(), v.long()), "torch.int64"),
            (lambda r, c, v, _: (r, c, v, v.detach().clone().requires_grad_()), "lam requires grad"),
            (lambda r, c, v, _: (r, c, v, v.detach()[:2]), r"lam \[2, 3\].*\[4, 3\]"),
            (lambda r, c, v, _: (r, c, v, v.detach().to("meta")), "lam is on meta"),
        ],
    ),
    {"": {}, "varying": dict(lam="varying"), "0": dict(lam=0.0, only=("equals_reference", "gradcheck")),
     "1": dict(lam=1.0, only=("equals_reference", "gradcheck"))},
)  # fmt: skip


# Norms


def _norm(d: Draw, lead: tuple[int, ...], D: int, affine: int = 1, eps: float | None = None):
    x = (3 * d.data(*lead, D) + 1).requires_grad_()
    parts = tuple(d.data(D).to(d.wide).requires_grad_() for _ in range(affine))
    return (x, *parts, *([] if eps is None else [eps]))


for _name, _affine in (("rms_norm", 1), ("rms_norm_silu", 1), ("layer_norm_silu", 2), ("layer_norm_elu", 2)):
    _operator = getattr(ops, _name)
    register(
        Case(
            _name,
            _operator,
            lambda d, lead, D, affine=_affine: _norm(d, lead, D, affine),
            kernel="norm_act",
            sizes=[
                dict(lead=(4,), D=3), dict(lead=(), D=1), dict(lead=(1,), D=1), dict(lead=(2, 3), D=31),
                dict(lead=(70,), D=4), dict(lead=(33,), D=32), dict(lead=(3,), D=300), dict(lead=(0,), D=4),
                dict(lead=(130,), D=17), dict(lead=(2,), D=40),
            ],
            wide=dict(lead=(75,), D=13),
            shared=[dict(lead=(4099,), D=9), dict(lead=(301,), D=257)],
            rows=dict(lead=(37,), D=70),
            ranges=dict(lead=LEADS, D=(1, 33)),
            close="tensor",
            precision={F32: 1e-5, F64: 1e-11, F16: 2e-2},
            reduced_sizes=[dict(lead=(15,), D=257)],
            autocast_dtype=F16,
            wrong=[
                (lambda x, *w: (x.sum(), *w), r"D >= 1, got \[\]"),
                (lambda x, *w: (x[:, :0], *(a[:0] for a in w)), r"D >= 1, got \[4, 0\]"),
                (lambda x, *w: (x.long(), *w), "torch.int64"),
                (lambda x, *w: (x, w[0][:2], *w[1:]), r"weight \[3\].*\[2\]"),
                (lambda x, *w: (x, *w[:-1], w[-1][None]), r"(weight|bias) \[3\].*\[1, 3\]"),
                (lambda x, *w: (x, w[0].to("meta"), *w[1:]), "weight.*on cpu.*meta"),
                (lambda x, *w: (x, *w[:-1], w[-1].long()), "(weight|bias).*torch.int64"),
            ],
        )
    )  # fmt: skip


# symlog


def _magnitudes(d: Draw, lead: tuple[int, ...]):
    """Of all magnitudes from 1e-6 to 10, both signs, and a zero."""
    x = 10 ** (7 * d.uniform(*lead).double() - 6) * torch.where(d.flags(*lead, share=0.5), -1, 1)
    x.flatten()[:1] = 0
    return (x.to(d.dtype).requires_grad_(),)


for _name in ("symlog", "symexp"):
    register(
        Case(
            _name,
            getattr(ops, _name),
            _magnitudes,
            kernel=_name,
            sizes=[dict(lead=(3, 4))] + [dict(lead=lead) for lead in ((), (1,), (2, 1, 700), (0, 3))],
            wide=dict(lead=(2077,)),
            shared=[dict(lead=(70_001,))],
            rows=dict(lead=(37,)),
            ranges=dict(lead=[*LEADS, (2, 3, 5)]),
            close="relative",
            precision={F32: 1e-6, F64: 1e-13, F16: 1.2e-2},
            reduced_sizes=[dict(lead=(2077,))],
            wrong=[(lambda x: (x.long(),), "torch.int64")],
            without={"reference_is_differentiable_twice": "but at 0, one of the numbers: see test_symlog.py"},
        )
    )


# Categoricals


def _sample(d: Draw, lead: tuple[int, ...], C: int, unimix: float = 0.01, estimator: str = "straight_through"):
    noise = (*lead, C) if estimator == "gumbel" else lead
    return d.normal(*lead, C, scale=2), d.uniform(*noise), unimix, estimator


_CATEGORICAL = dict(
    wide=dict(lead=(3, 12), C=21), shared=[dict(lead=(300, 8), C=17)], ranges=dict(lead=LEADS, C=(1, 19)),
    close="tensor", precision={F32: 1e-5, F64: 1e-12, F16: 1e-2}, reduced_sizes=[dict(lead=(4, 8), C=16)],
)  # fmt: skip
_CATEGORICAL_SIZES = [
    dict(lead=lead, C=C) for lead, C in [
        ((4, 3), 5), ((1,), 1), ((1,), 4), ((3,), 2), ((2, 32), 4), ((3, 5), 16), ((2, 2), 17), ((0, 3), 4),
    ]
]  # fmt: skip
_UNIMIX = {"": dict(unimix=0.01), "raw": dict(unimix=0.0, alike=True)}
register(
    Case(
        "straight_through_categorical",
        ops.straight_through_categorical,
        _sample,
        kernel="straight_through_categorical",
        sizes=_CATEGORICAL_SIZES,
        rows=dict(lead=(37,), C=7),
        smooth=lambda outputs: outputs.log_prob,
        **_CATEGORICAL,
        wrong=[
            (lambda x, u, m, e: (x[..., :0], u, m, e), r"C >= 1, got \[4, 3, 0\]"),
            (lambda x, u, m, e: (x.sum(), u, m, e), r"C >= 1, got \[\]"),
            (lambda x, u, m, e: (x.long(), u, m, e), "torch.int64"),
            (lambda x, u, m, e: (x, u[:2], m, e), r"uniform \[4, 3(, 5)?\].*got \[2, 3"),
            (lambda x, u, m, e: (x, u.long(), m, e), "floating-point.*torch.int64"),
            (lambda x, u, m, e: (x, u.to("meta"), m, e), "meta"),
            (lambda x, u, m, e: (x, u.clone().requires_grad_(), m, e), "uniform requires grad"),
            (lambda x, u, m, e: (x, u, 1.0, e), r"\[0, 1\), got 1.0"),
            (lambda x, u, m, e: (x, u, m, "reinforce"), "unknown estimator 'reinforce'"),
        ],
        without={"reference_is_differentiable_twice": "the estimator's own derivative is none of the sample"},
    ),
    {**_UNIMIX, "gumbel": dict(estimator="gumbel"), "gumbel-raw": dict(estimator="gumbel", unimix=0.0, alike=True)},
)
register(
    Case(
        "categorical_kl",
        ops.categorical_kl,
        lambda d, lead, C, unimix=0.01: (d.normal(*lead, C, scale=2), d.normal(*lead, C, scale=2), unimix, 1.0),
        kernel="categorical_kl",
        sizes=_CATEGORICAL_SIZES,
        rows=dict(lead=(37, 3), C=7),
        **_CATEGORICAL | dict(ranges=dict(lead=[lead for lead in LEADS if lead and lead[-1]], C=(1, 19))),
        wrong=[
            (lambda x, y, *_: (x, y[:2]), r"prior_logits \[2, 3, 5\]"),
            (lambda x, y, *_: (x, y.float()), "torch.float32"),
            (lambda x, y, *_: (x[0, 0], y[0, 0]), r"S, C >= 1, got \[5\]"),
            (lambda x, y, *_: (x[:, :0], y[:, :0]), r"got \[4, 0, 5\]"),
        ],
        without={
            "gradcheck": "each side stops the gradient of one argument: see test_categorical.py",
            "reference_is_differentiable_twice": "as gradcheck",
        },
    ),
    _UNIMIX,
)
register(
    Case(
        "categorical_entropy",
        ops.categorical_entropy,
        lambda d, lead, C, unimix=0.01: (d.normal(*lead, C, scale=2), unimix),
        kernel="categorical_entropy",
        sizes=_CATEGORICAL_SIZES,
        rows=dict(lead=(37,), C=7),
        **_CATEGORICAL,
        wrong=[(lambda x, _: (x, -0.1), "got -0.1"), (lambda x, _: (x.bool(),), "torch.bool")],
    ),
    _UNIMIX,
)


# Two-hot


def _two_hot(d: Draw, lead: tuple[int, ...], half: int, targets: int = 1):
    bins = (3 * torch.linspace(-1, 1, 2 * half + 1, dtype=F64) ** 3).to(d.wide)
    target, second = ((2 * d.data(*lead)).to(d.wide) for _ in range(2))
    return d.normal(*lead, 2 * half + 1, scale=2), target, bins, *((second, 0.7) if targets == 2 else ())


_TWO_HOT = dict(
    sizes=[dict(lead=lead, half=half) for lead, half in [
        ((4,), 4), ((), 0), ((1,), 1), ((4, 3), 16), ((0, 3), 4), ((130,), 16), ((1,), 0), ((2,), 1),
    ]],
    wide=dict(lead=(19,), half=38), shared=[dict(lead=(701,), half=127)], rows=dict(lead=(37,), half=4),
    ranges=dict(lead=LEADS, half=(0, 16)), close="tensor", precision={F32: 1e-5, F64: 1e-11, F16: 2**-8},
    reduced_sizes=[dict(lead=(40,), half=16)],
)  # fmt: skip
register(
    Case(
        "two_hot_loss",
        ops.two_hot_loss,
        _two_hot,
        kernel="two_hot_loss",
        constants=[2],
        **_TWO_HOT,
        wrong=[
            (lambda x, y, b, *_: (x[..., :8], y, b[:8]), r"K odd, got \[4, 8\]"),
            (lambda x, y, b, *_: (x.sum(), y, b), r"K odd, got \[\]"),
            (lambda x, y, b, *_: (x.long(), y, b), "torch.int64"),
            (lambda x, y, b, *_: (x, y[:3], b), r"target \[4\].*\[3\]"),
            (lambda x, y, b, *_: (x, y, b[:5]), r"bins \[9\].*\[5\]"),
            (lambda x, y, b, *_: (x, y.to("meta"), b), "target.*on cpu.*meta"),
            (lambda x, y, b, *_: (x, y, b, y[None]), r"second_target \[4\].*\[1, 4\]"),
        ],
    ),
    {"": {}, "second": dict(targets=2)},
)
register(
    Case(
        "two_hot_mean",
        ops.two_hot_mean,
        lambda d, **sizes: ((args := _two_hot(d, **sizes))[0], args[2] + 0.5),  # not symmetric
        kernel="two_hot_mean",
        **_TWO_HOT,
        wrong=[
            (lambda x, b: (x[..., :8], b[:8]), r"K odd, got \[4, 8\]"),
            (lambda x, b: (x, b[:5]), r"bins \[9\].*\[5\]"),
        ],
    )
)


# Mixture densities


def _mixture(d: Draw, lead: tuple[int, ...], Z: int, K: int, joint: bool = False):
    logits = d.normal(*lead, *(() if joint else (Z,)), K)
    return logits, d.normal(*lead, Z, K), d.normal(*lead, Z, K, scale=0.5)


_RAISED = {"other_dtypes": "16 bits are raised to float32: see test_mdn.py"}
_MDN = dict(
    sizes=[dict(lead=lead, Z=Z, K=K) for lead, Z, K in [
        ((2,), 3, 4), ((), 1, 1), ((), 3, 5), ((1,), 5, 5), ((4, 1), 3, 2), ((3,), 33, 5), ((130,), 2, 5), ((2,), 3, 9),
        ((0,), 4, 5), ((4, 0), 2, 3),
    ]],
    wide=dict(lead=(11,), Z=13, K=5), shared=[dict(lead=(300,), Z=32, K=5)], rows=dict(lead=(37,), Z=3, K=5),
    ranges=dict(lead=LEADS, Z=(1, 4), K=(1, 9)), precision={F32: 2e-5, F64: 1e-12},
    reduced_sizes=[dict(lead=(12,), Z=6, K=5)],
)  # fmt: skip
register(
    Case(
        "mdn_nll",
        ops.mdn_nll,
        lambda d, lead, Z, K, joint=False: (*_mixture(d, lead, Z, K, joint), d.normal(*lead, Z)),
        kernel="mdn_nll",
        **_MDN,
        without=_RAISED,
        wrong=[
            (lambda l, m, s, y: (l, m[..., :0], s, y), r"K >= 1, got \[2, 3, 0\]"),
            (lambda l, m, s, y: (l, m[:, :0], s[:, :0], y[:, :0]), r"Z >= 1.*\[2, 0, 4\]"),
            (lambda l, m, s, y: (l[0], m[0, 0], s[0, 0], y[0, 0]), r"\[..., Z, K\].*\[4\]"),
            (lambda l, m, s, y: (l[:1], m, s, y), r"logits \[1, .*4\] are neither.*\[2, 3, 4\]"),
            (lambda l, m, s, y: (l[..., :3], m, s, y), r"logits \[2, .*3\] are neither"),
            (lambda l, m, s, y: (l, m, s[..., :3], y), r"expected log_std \[2, 3, 4\].*got \[2, 3, 3\]"),
            (lambda l, m, s, y: (l, m, s, y[:, :2]), r"expected value \[2, 3\].*got \[2, 2\]"),
            (lambda l, m, s, y: (l, m, s, y.float()), r"value.*torch.float64.*torch.float32"),
            (lambda l, m, s, y: (l.to("meta"), m, s, y), "logits.*meta"),
            (lambda l, m, s, y: (l.long(), m.long(), s.long(), y.long()), "torch.int64"),
        ],
    ),
    {"": {}, "joint": dict(joint=True)},
)
register(
    Case(
        "mdn_sample",
        ops.mdn_sample,
        lambda d, lead, Z, K, joint=False: (
            *_mixture(d, lead, Z, K, joint), 0.8, d.uniform(*lead, *(() if joint else (Z,))), d.data(*lead, Z),
        ),
        kernel="mdn_sample",
        **_MDN,
        wrong=[
            (lambda l, m, s, t, u, n, bad=bad: (l, m, s, bad, u, n), "positive, finite temperature")
            for bad in (0.0, -1.0, float("inf"), float("nan"))
        ]
        + [
            (lambda l, m, s, t, u, n: (l, m, s, t, u[:1], n), r"uniform \[2(, 3)?\].*got \[1"),
            (lambda l, m, s, t, u, n: (l, m, s, t, u, n[:1]), r"normal \[2, 3\].*got \[1, 3\]"),
        ],
        without=NO_GRADIENT | _RAISED,
    ),
    {"": {}, "joint": dict(joint=True)},
)  # fmt: skip


# Random numbers


for _kind in ("bits", "uniform", "normal"):
    register(
        Case(
            f"philox_{_kind}",
            getattr(ops, f"philox_{_kind}"),
            lambda d, lead, shape, first=0: (
                torch.randint(-(2**63), 2**63 - 1, (*lead, 2), generator=d.generator), shape, first,
            ),
            kernel=f"philox_{_kind}",
            sizes=[dict(lead=(3,), shape=(2, 3))] + [
                dict(lead=(2,), shape=shape, first=first)
                for shape in (1, 4, 5, 63, 256) for first in (0, 7, 2**32 - 3, -2)
            ] + [dict(lead=(), shape=3), dict(lead=(0,), shape=3), dict(lead=(2, 2), shape=0)],
            wide=dict(lead=(2,), shape=4003),
            shared=[dict(lead=(2,), shape=40_003)],
            rows=dict(lead=(37,), shape=5),
            ranges=dict(lead=LEADS, shape=[(), (7,), (0,), (2, 3)], first=[0, 5, 2**62]),
            # Logarithms and cosines are rounded differently; the rest is bits.
            tolerance=3e-6 if _kind == "normal" else 0,
            close="relative" if _kind != "normal" else "element",
            precision={F32: 3e-6 if _kind == "normal" else 0},
            wrong=[
                (lambda s, shape, first: (s.float(), shape), r"\[3, 2\] torch.float32"),
                (lambda s, shape, first: (s[0, :1], shape), r"\[..., 2\] of int64, got \[1\]"),
                (lambda s, shape, first: (s[0, 0], shape), r"got \[\]"),
                (lambda s, shape, first: (s, (3, -1)), r"\[3, -1\]"),
            ],
            without=NO_GRADIENT | dict.fromkeys(
                ("nan_in_is_nan_out", "other_dtypes", "autocast", "reduced_precision"), "its input is a seed"
            ),
        )
    )  # fmt: skip
