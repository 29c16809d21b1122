"""Recurrent cells: their gates, and whole sequences of them."""

import torch

from fastwm import ops
from tests.cases.case import Case, Draw, register
from tests.cases.pointwise import F16, F32, F64, LEADS

CHAIN = {  # of whole sequences
    "reference_is_differentiable_twice": "a loop of what is; its second derivative is slow to check",
    "other_dtypes": "float16 sequences are no use of theirs",
    "autocast": "products are in bfloat16: see reduced_precision",
    "captures_into_a_cuda_graph": "agents' own tests capture them",
}


# Gates


def _gates(d: Draw, lead: tuple[int, ...], D: int, parts: tuple[int, ...], numbers: tuple = (), mixed: bool = False):
    """Tensors of so many D; 0 is a vector [3D]. `mixed`: the carry, which is last, is wider than the gates."""
    shapes = [(3 * D,) if p == 0 else (*lead, p * D) for p in parts]
    args = [d.normal(*shape) for shape in shapes]
    if mixed:
        args = [x.detach().to(d.wide).requires_grad_() if parts[i] in (0, 1) else x for i, x in enumerate(args)]
    return *args, *numbers


def _gates_case(
    name: str, parts: tuple[int, ...], numbers: tuple = (), wrong: tuple = (), form: str = "", alike: bool = False
) -> None:  # fmt: skip
    register(
        Case(
            f"{name}-{form}" if form else name,
            getattr(ops, name),
            lambda d, lead, D, mixed=False: _gates(d, lead, D, parts, numbers, mixed),
            kernel=name,
            sizes=[dict(lead=lead, D=D) for lead, D in [
                ((2,), 4), ((), 4), ((1,), 8), ((3, 5), 12), ((35,), 20), ((2,), 260), ((0,), 8), ((2, 0), 4),
            ]],
            wide=dict(lead=(9,), D=76),
            shared=[dict(lead=(201,), D=300)],
            rows=dict(lead=(37,), D=4),
            ranges=dict(lead=LEADS, D=[4, 8, 12, 20]),
            precision={F32: 1e-5, F64: 1e-12, F16: 5e-2},
            reduced_sizes=[dict(lead=(17,), D=64, mixed=mixed) for mixed in (False, True)],
            autocast_dtype=F16,
            wrong=wrong,
            alike=alike,
        )
    )  # fmt: skip


_gates_case(
    "gru_gates", (3, 3, 1), wrong=(
        (lambda i, k, h: (i[:, :-1], k, h), r"input \[\.\.\., 3 \* D\].*input \[2, 11\]"),
        (lambda i, k, h: (i, k[:1], h), r"hidden \[1, 12\]"),
        (lambda i, k, h: (i, k.float(), h), "hidden.*torch.float32"),
        (lambda i, k, h: (i.float(), k.float(), h), "h.*torch.float64.*input.*torch.float32"),
        (lambda i, k, h: (i, k, h.to("meta")), "h.*meta"),
        (lambda i, k, h: (i.long(), k.long(), h.long()), "torch.int64"),
        (lambda i, k, h: (i.sum(), k.sum(), h.sum()), r"h \[\]"),
    ),
)  # fmt: skip
_gates_case(
    "block_gru_gates", (3, 1), (4, -0.7), wrong=(
        (lambda g, h, *_: (g, h, 3), "width 4 does not divide into 3 blocks"),
        (lambda g, h, *_: (g, h, 0), "0 blocks"),
    ),
)  # fmt: skip
_gates_case(
    "layernorm_gru_gates", (3, 0, 0, 1), (1e-2, -0.7), wrong=(
        (lambda g, w, b, h, *_: (g, g, b, h), r"weight \[12\].*got \[2, 12\]"),
        (lambda g, w, b, h, *_: (g, w, b.to("meta"), h), "bias.*meta"),
        (lambda g, w, b, h, *_: (g[:, :0], w[:0], b[:0], h[:, :0]), "width 0"),
    ),
)  # fmt: skip
_gates_case("planet_gru_reset", (2, 1), wrong=((lambda g, h: (g[:, :-1], h), r"gates \[\.\.\., 2 \* D\]"),))
_gates_case(
    "planet_gru_update", (1, 1, 1), wrong=(
        (lambda u, c, h: (u.float(), c, h), "update.*torch.float32"),
        (lambda u, c, h: (u, c[:, :-1], h), r"cand \[2, 3\]"),
    ),
)  # fmt: skip
_gates_case(
    "lstm_gates", (4, 4, 1), (0.3, "ifgo"), wrong=(
        (lambda i, k, c, *_: (i[:, :-1], k, c), r"input \[\.\.\., 4 \* D\].* beside c"),
        (lambda i, k, c, *_: (i, k, c, 0.0, "iofg"), "'iofg'"),
    ),
)  # fmt: skip
_gates_case("lstm_gates", (4, 4, 1), (1.0, "ijfo"), form="ijfo", alike=True)


# Scans

_SCAN = dict(
    kernel="cell_scan",
    sizes=[
        dict(T=3, B=2, X=2, D=3), dict(T=1, B=1, D=1), dict(T=1, B=3, D=5), dict(T=3, B=16, D=32, resets=1.0),
        dict(T=5, B=33, D=17, resets=None), dict(T=64, B=2, D=8), dict(T=2, B=300, D=48), dict(T=3, B=0, D=5),
    ],
    wide=dict(T=6, B=21, D=75),
    # In float64, weights of width 288 go beyond a core's cache: few rows are then split by columns.
    shared=[dict(T=3, B=B, D=D) for B, D in [(20, 40), (3, 288), (20, 288), (200, 288)]],
    rows=dict(T=4, B=37, D=6),
    ranges=dict(T=(1, 9), B=(0, 9), X=(0, 4), D=(1, 33), resets=[None, 0.0, 0.3, 1.0]),
    close="tensor",
    precision={F32: 1e-5, F64: 1e-11},
    reduced="autocast",
    reduced_sizes=[dict(T=T, B=B, D=96, X=32) for T, B in [(1, 1), (3, 7), (4, 37)]],
    threads="rounding",
    batched=True,
    without=CHAIN,
)  # fmt: skip


def _torchs(d: Draw, T: int, B: int, D: int, gates: int, X: int = 3, resets: float | None = 0.2, bias: bool = True):
    """Of torch.nn's layers: x, carries, weights, biases, is_first."""
    carries = [d.normal(B, D) for _ in range(gates - 2)]
    biases = [d.normal(gates * D) if bias else None for _ in range(2)]
    first = None if resets is None else d.flags(T, B, share=resets)
    return d.normal(T, B, X), *carries, d.weight(gates * D, X), d.weight(gates * D, D), *biases, first


def _change(**changed):
    """Arguments by name, of an LSTM's scan."""
    names = ("x", "h", "c", "w_ih", "w_hh", "b_ih", "b_hh", "is_first", "forget_bias", "order")
    return lambda *args: tuple((dict(zip(names, args)) | changed).values())


register(
    Case("gru_scan", ops.gru_scan, lambda d, **sizes: _torchs(d, gates=3, **sizes), **_SCAN),
    {"": {}, "unbiased": dict(bias=False, alike=True)},
)
_Z64, _Z32 = (lambda *s: torch.zeros(*s).double()), torch.zeros
register(
    Case(
        "lstm_scan",
        ops.lstm_scan,
        lambda d, forget_bias=1.0, order="ifgo", **sizes: (*_torchs(d, gates=4, **sizes), forget_bias, order),
        **_SCAN,
        wrong=[
            (_change(x=_Z64(0, 2, 2)), "T >= 1"),
            (_change(x=_Z64(3, 2)), r"x \[T, B, X\]"),
            (_change(h=_Z64(2, 0)), "D >= 1"),
            (_change(h=_Z64(1, 3)), r"h \[2, 3\] torch.float64 on cpu, got \[1, 3\]"),
            (_change(c=_Z32(2, 3)), r"c \[2, 3\] torch.float64 on cpu, got \[2, 3\] torch.float32"),
            (_change(is_first=_Z32(3, 2)), r"is_first \[3, 2\] torch.bool on cpu, got \[3, 2\] torch.float32"),
            (_change(is_first=torch.zeros(2, 3, dtype=torch.bool)), r"is_first \[3, 2\]"),
            (_change(w_ih=_Z64(12, 4)), r"weight_ih \[12, 2\]"),
            (_change(w_hh=_Z32(12, 3)), r"weight_hh \[12, 3\] torch.float64 on cpu, got \[12, 3\] torch.float32"),
            (_change(w_ih=_Z32(12, 2)), "h's dtype"),
            (_change(b_hh=_Z64(12).to("meta")), "meta"),
            (_change(order="fgio"), "'fgio'"),
        ],
    ),
    {
        "": {},
        "unbiased": dict(bias=False, forget_bias=0.0, alike=True, wrong=()),
        "ijfo": dict(forget_bias=0.5, order="ijfo", alike=True, wrong=()),
    },
)


def _layernorm(d: Draw, T, B, D, X=3, resets=0.2, bias=True, order="xh", eps=1e-3, update_bias=-1.0):
    first = None if resets is None else d.flags(T, B, share=resets)
    parts = d.normal(3 * D) if bias else None, d.scale(3 * D), d.normal(3 * D)
    return d.normal(T, B, X), d.normal(B, D), d.weight(3 * D, X + D), *parts, first, order, eps, update_bias


register(
    Case(
        "layernorm_gru_scan",
        ops.layernorm_gru_scan,
        _layernorm,
        **_SCAN,
        wrong=[(lambda *args: (*args[:7], "hh"), "'hh'")],
    ),
    {"": {}, "hx": dict(bias=False, order="hx", eps=0.1, update_bias=0.5, alike=True, wrong=())},
)


def _planet(d: Draw, T, B, D, X=3, resets=0.2):
    first = None if resets is None else d.flags(T, B, share=resets)
    cell = d.weight(2 * D, X + D), d.normal(2 * D), d.weight(D, X + D), d.normal(D)
    return d.normal(T, B, X), d.normal(B, D), *cell, first


register(Case("planet_gru_scan", ops.planet_gru_scan, _planet, **_SCAN))


def core(d: Draw, deter: int, hidden: int, blocks: int, embeds: int) -> tuple[ops.DenseWeights, ops.LinearWeights]:
    """The block GRU's hidden layer over the carry's own block and `embeds` embeddings, and its gates."""
    block = deter // blocks
    layer = ops.DenseWeights(
        d.weight(blocks, block + embeds * hidden, block), d.normal(deter, scale=0.3), d.scale(deter)
    )
    return layer, ops.LinearWeights(d.weight(blocks, block, 3 * block), d.normal(3 * deter, scale=0.3))


def _block_gru(d: Draw, T, B, inputs=(7, 3), block=4, hidden=6, blocks=2, resets=0.2, update_bias=-1.0):
    D = block * blocks
    layer, gates = core(d, D, hidden, blocks, 1 + len(inputs))
    w = ops.BlockGRUWeights(d.dense(hidden, D), tuple(d.dense(hidden, X) for X in inputs), (layer,), gates)
    xs = tuple(d.normal(T, B, X) for X in inputs)
    first = None if resets is None else d.flags(T, B, share=resets)
    return xs, d.normal(B, D), w, first, update_bias


_WIDE = dict(inputs=(5,), block=64, hidden=64, blocks=8)  # in float64 threads split its columns
_BF16 = dict(inputs=(9, 4), block=64, hidden=40, blocks=3)
register(
    Case(
        "block_gru_scan",
        ops.block_gru_scan,
        _block_gru,
        kernel="block_gru_scan",
        sizes=[
            dict(T=3, B=2), dict(T=1, B=1, resets=1.0), dict(T=1, B=64), dict(T=5, B=33, resets=None),
            dict(T=64, B=2), dict(T=2, B=300, update_bias=0.5), dict(T=3, B=0), dict(T=2, B=3, inputs=(4,)),
        ],
        wide=dict(T=6, B=21, inputs=(9,), block=32, hidden=40, blocks=3),
        shared=[dict(T=9 if B == 20 else 3, B=B, **_WIDE) for B in (3, 20, 200)],
        rows=dict(T=4, B=37, inputs=(3,)),
        ranges=dict(
            T=(1, 5), B=(0, 5), blocks=(1, 4), block=(1, 9), hidden=(1, 33), inputs=[(1,), (5,), (0, 6), (2, 3, 1)],
            resets=[None, 0.0, 0.4, 1.0], update_bias=[-1.0, 0.0, 2.5],
        ),
        close="tensor",
        precision={F32: 1e-5, F64: 1e-12},
        reduced="autocast",
        reduced_sizes=[dict(T=T, B=B, **_BF16) for T, B in [(1, 1), (3, 7), (3, 16), (4, 37)]],
        threads="rounding",
        batched=True,
        wrong=[
            (lambda x, *rest: ((x[0][:0], x[1]), *rest), "T >= 1"),
            (lambda x, *rest: ((x[0][0], x[1]), *rest), r"inputs \[T, B, X\]"),
            (lambda x, *rest: ((x[0].long(), x[1]), *rest), r"inputs \[T, B, X\]"),
            (lambda x, *rest: ((x[0][..., :4], x[1]), *rest), r"input 0 \[3, 2, 7\].*\[3, 2, 4\]"),
            (lambda x, *rest: ((x[0], x[1][:, :1]), *rest), r"input 1 \[3, 2, 3\].*\[3, 1, 3\]"),
            (lambda x, *rest: (x[:1], *rest), "an input for each of 2 embeddings"),
            (lambda x, h, *rest: (x, h[:, :4], *rest), "embed_carry"),
            (lambda x, h, *rest: (x, h[:, :7], *rest), "2 blocks"),
            (lambda x, h, *rest: (x, h[:1], *rest), r"h \[2, 8\].*\[1, 8\]"),
            (lambda x, h, *rest: (x, h.float(), *rest), "one dtype"),
            (lambda x, h, *rest: (x, h.to("meta"), *rest), "meta"),
            (lambda x, h, w, f, *rest: (x, h, w, f.float(), *rest), "is_first to be bool"),
            (lambda x, h, w, f, *rest: (x, h, w, f[:1], *rest), r"is_first \[3, 2\].*\[1, 2\]"),
        ],
        without=CHAIN,
    )
)  # fmt: skip
