"""The observe sequence of PlaNet, V1 and V2: every variant against the reference, gradients, resets, contracts."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS, GRUState
from fastwm.ops import GRURSSMKind, GRURSSMWeights, gru_rssm_observe
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

TINY = dict(deter=9, hidden=6, stoch=4)
WIDE = dict(deter=200, hidden=136, stoch=24)  # weights enough for threads to split the columns
EVERY_KIND = [
    *(GRURSSMKind("planet_gru", f, classes) for f in ("relu", "elu") for classes in (0, 5)),
    *(GRURSSMKind("gru", f, classes) for f in ("elu", "silu") for classes in (0, 5)),
    *(
        GRURSSMKind("layernorm_gru", f, classes, order, unimix)
        for f, classes, order, unimix in (
            ("elu", 5, "xh", 0.0), ("elu", 0, "xh", 0.0), ("silu", 5, "hx", 0.01), ("relu", 5, "xh", 0.1),
        )
    ),
]  # fmt: skip
V1, V2 = EVERY_KIND[4], EVERY_KIND[8]


class Case:
    """A model with every parameter moved off its initial value, and the arguments of the operator before weights."""

    def __init__(
        self, kind: GRURSSMKind, T: int, B: int, sizes: dict[str, int] = TINY, norm: bool = False,
        dtype: torch.dtype = torch.float64, resets: float = 0.2, seed: int = 0, bias: bool = True,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.rssm, self.sizes = GRURSSM(kind, 7, 3, norm=norm, **sizes).to(dtype), sizes
        with torch.no_grad():
            for p in self.rssm.parameters():
                p.copy_((p.ndim == 1) * p + draw(*p.shape) / (p.shape[-1] if p.ndim == 2 else 25) ** 0.5)
        if not bias:
            for name, module in self.rssm.named_modules():
                if "norm" not in name and "stats" not in name:
                    for missing in ("bias", "bias_ih", "bias_hh"):
                        if getattr(module, missing, None) is not None:
                            setattr(module, missing, None)
        S, C = sizes["stoch"], kind.classes
        first = torch.rand(T, B, generator=generator) < resets
        start = (draw(B, sizes["deter"]), draw(B, S, C) if C else draw(B, S))
        noise = torch.rand(T, B, S, generator=generator, dtype=torch.float64).to(dtype) if C else draw(T, B, S)
        self.args = [draw(T, B, 7).requires_grad_(), draw(T, B, 3).requires_grad_(), first, *start, noise]

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        return gru_rssm_observe(*self.args, self.rssm.weights, self.rssm.kind)

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype."""
        copy = Case.__new__(Case)
        norm = self.rssm.input.norm is not None
        copy.rssm, copy.sizes = GRURSSM(self.rssm.kind, 7, 3, norm=norm, **self.sizes).to(dtype), self.sizes
        copy.rssm.load_state_dict(self.rssm.state_dict())
        copy.args = [x.detach().to(dtype) if x.is_floating_point() else x for x in self.args]
        for x in copy.args[:2]:
            x.requires_grad_()
        return copy

    def with_grads(self) -> dict[str, Tensor]:
        """All outputs, and the gradients of everything that has one under random cotangents."""
        outputs = self()
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
        leaves = {"tokens": self.args[0], "action": self.args[1]}
        leaves |= {name: p for name, p in self.rssm.named_parameters() if not name.startswith("prior")}
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        values = dict(zip(("deter", "stoch", "stats"), outputs))
        return {k: v.detach() for k, v in values.items()} | dict(zip(leaves, grads))

    def reference(self) -> dict[str, Tensor]:
        with fastwm.backend("ref"):
            return self.with_grads()

    def check(self, tolerance: float = 1e-11) -> None:
        assert_all_close(self.with_grads(), self.reference(), tolerance)


def assert_all_close(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    for name, want in exact.items():
        scale = max(1.0, want.abs().max().item() if want.numel() else 1.0)
        assert_close(
            ours[name].double(), want.double(), atol=tolerance * scale, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


# Against the reference


@needs_cpu
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda k: f"{k.cell}-{k.activation}-{k.classes}-{k.order}")
def test_every_variant_equals_the_reference(kind: GRURSSMKind, norm: bool) -> None:
    Case(kind, 6, 5, norm=norm).check()


@needs_cpu
@pytest.mark.parametrize("kind", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(("T", "B", "resets"), [(1, 1, 1.0), (1, 3, 0.0), (3, 64, 0.3), (64, 2, 0.1), (2, 1024, 0.1)])
def test_lengths_and_batches(kind: GRURSSMKind, T: int, B: int, resets: float) -> None:
    Case(kind, T, B, resets=resets).check()


@needs_cpu
@pytest.mark.parametrize("kind", [EVERY_KIND[0], V1, V2, EVERY_KIND[10]], ids=lambda k: f"{k.cell}-{k.order}")
def test_without_biases(kind: GRURSSMKind) -> None:
    case = Case(kind, 5, 3, bias=kind.cell == "planet_gru")
    assert kind.cell == "planet_gru" or case.rssm.input.linear.bias is None
    case.check()


@needs_cpu
def test_a_norm_without_shift() -> None:
    case = Case(V2, 5, 3, norm=True)
    assert case.rssm.post.norm is not None
    case.rssm.post.norm.register_parameter("bias", None)
    case.check()


@needs_cpu
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("B", [3, 20, 200])
@pytest.mark.parametrize("kind", [EVERY_KIND[1], V1, V2], ids=lambda k: k.cell)
def test_threads_by_rows_and_by_columns(kind: GRURSSMKind, B: int, count: int) -> None:
    """Few rows of a wide model are split by columns, many by rows; chunks of the weights' gradients end anywhere."""
    case = Case(kind, 9 if B == 20 else 3, B, WIDE)
    with threads(count):
        ours = case.with_grads()
    assert_all_close(ours, case.reference(), 1e-11)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [EVERY_KIND[0], V1, V2], ids=lambda k: k.cell)
def test_every_instruction_set(kind: GRURSSMKind, dtype: torch.dtype, isa: str) -> None:
    assert _lib.host is not None
    case = Case(kind, 6, 21, dict(deter=97, hidden=40, stoch=5), norm=True, dtype=dtype)
    exact = case.to(torch.float64).reference()
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = case.with_grads()
    finally:
        _lib.host.set_isa(before)
    if kind.classes:
        assert torch.equal(ours["stoch"].double(), exact["stoch"])
    assert_all_close(ours, exact, {torch.float32: 2e-5, torch.float64: 1e-12}[dtype])


@needs_cpu
@settings(max_examples=30)
@given(
    kind=st.sampled_from(EVERY_KIND),
    norm=st.booleans(),
    T=st.integers(1, 7),
    B=st.integers(0, 5),
    deter=st.integers(1, 40),
    hidden=st.integers(1, 40),
    stoch=st.integers(1, 6),
    classes=st.integers(1, 9),
    data=st.data(),
)
def test_any_sizes_and_resets(
    kind: GRURSSMKind,
    norm: bool,
    T: int,
    B: int,
    deter: int,
    hidden: int,
    stoch: int,
    classes: int,
    data: st.DataObject,
) -> None:
    kind = kind._replace(classes=classes if kind.classes else 0)
    case = Case(kind, T, B, dict(deter=deter, hidden=hidden, stoch=stoch), norm, seed=data.draw(st.integers(0, 99)))
    flags = data.draw(st.lists(st.booleans(), min_size=T * B, max_size=T * B))
    case.args[2] = torch.tensor(flags, dtype=torch.bool).view(T, B)
    case.check(1e-10)


@needs_cpu
def test_any_strides() -> None:
    case, strided = Case(V2, 4, 3), Case(V2, 4, 3)
    strided.args = [
        x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_(x.requires_grad) for x in case.args
    ]
    assert not strided.args[0].is_contiguous()
    with torch.no_grad():
        weight = strided.rssm.post_stats.weight
        weight.set_(weight.mT.contiguous().mT)
    assert_all_close(strided.with_grads(), case.reference(), 1e-11)


# Meaning


@pytest.fixture(params=["ref", pytest.param("cpu", marks=needs_cpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastwm.backend(request.param):
        yield request.param


@pytest.mark.parametrize("kind", [EVERY_KIND[0], V1, V2], ids=lambda k: k.cell)
def test_a_reset_forgets_start_and_action(backend: str, kind: GRURSSMKind) -> None:
    case, moved = Case(kind, 3, 2, resets=0.0), Case(kind, 3, 2, resets=0.0)
    for x in (case, moved):
        x.args[2][1, 0] = True
    moved.args = [*moved.args[:1], moved.args[1].detach().clone(), moved.args[2], *(x + 1 for x in moved.args[3:5]),
                  moved.args[5]]  # fmt: skip
    moved.args[1][:2] += 1.0
    ours, other = case(), moved()
    for a, b in zip(ours, other):
        assert torch.equal(a[1:, 0], b[1:, 0])
    assert not torch.equal(ours[0][1:, 1], other[0][1:, 1])


def test_a_gaussian_is_reparameterised(backend: str) -> None:
    _, stoch, stats = (case := Case(V1, 3, 4))()
    mean, raw = stats.chunk(2, -1)
    assert_close(stoch, mean + (torch.nn.functional.softplus(raw) + 0.1) * case.args[5])


def test_the_start_state_is_data(backend: str) -> None:
    case = Case(V2, 2, 2)
    deter = case.args[3].requires_grad_()
    assert torch.autograd.grad(case()[0].sum(), deter, allow_unused=True) == (None,)


# Contracts


@needs_cpu
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [V1, V2], ids=["v1", "v2"])
def test_repeats_bitwise(kind: GRURSSMKind, count: int) -> None:
    case = Case(kind, 6, 16, WIDE, dtype=torch.float32)
    with threads(count):
        first = case.with_grads()
        for _ in range(100 if count == 1 else 20):
            again = case.with_grads()
            assert all(torch.equal(first[name], again[name]) for name in first)


@needs_cpu
def test_without_gradients_nothing_is_saved() -> None:
    case = Case(V2, 4, 3)
    want = case()
    with torch.no_grad():
        got = case()
    assert all(torch.equal(a, b) for a, b in zip(got, want)) and got[0].grad_fn is None
    *inputs, cell, activation, unimix, eps, _, bf16 = raw_inputs(case)
    raw = torch.ops.fastwm.gru_rssm_observe(*inputs, cell, activation, unimix, eps, False, bf16)
    assert all(x.numel() == 0 for x in raw[3:])


def raw_inputs(case: Case) -> list[Any]:
    """The operator's own arguments."""
    captured: list[Any] = []
    module = sys.modules["fastwm.ops.gru_rssm_observe"]
    forward = module._forward

    class Capture:
        library = forward.library

        def __call__(self, library: str, *inputs: Any) -> Any:
            captured.extend(inputs)
            return forward(library, *inputs)

    module._forward = Capture()
    try:
        case()
    finally:
        module._forward = forward
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in captured]


@needs_cpu
@pytest.mark.parametrize("kind", [EVERY_KIND[0], V1, V2], ids=lambda k: k.cell)
def test_opcheck(kind: GRURSSMKind) -> None:
    for T, B, norm, dtype in [(1, 1, False, torch.float32), (3, 2, True, torch.float64)]:
        inputs = raw_inputs(Case(kind, T, B, norm=norm, dtype=dtype))
        op = torch.ops.fastwm.gru_rssm_observe.default
        for save in (True, False):
            torch.library.opcheck(op, (*inputs[:-2], save, False))
        differentiable = [
            x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() and i != 5 else x
            for i, x in enumerate(inputs)
        ]
        torch.library.opcheck(op, tuple(differentiable))
        outputs = op(*inputs)
        weights = [w for i, w in enumerate(inputs[6:20]) if i not in (4, 6, 13)]  # biases
        args = (*outputs[:3], *inputs[2:6], *outputs, *weights, *inputs[20:24], False)
        torch.library.opcheck(torch.ops.fastwm.gru_rssm_observe_backward.default, args)


@needs_cpu
@pytest.mark.parametrize("kind", [V1, V2], ids=["v1", "v2"])
def test_the_operators_start_state_has_a_gradient(kind: GRURSSMKind) -> None:
    """Imagining with given actions is the same chain, and needs it."""
    inputs = raw_inputs(Case(kind, 3, 2))
    start = [inputs[3].requires_grad_(), inputs[4].requires_grad_()]

    def loss(deter: Tensor, stoch: Tensor) -> Tensor:
        outputs = torch.ops.fastwm.gru_rssm_observe(*inputs[:3], deter, stoch, *inputs[5:])
        return outputs[0].sum() + (outputs[2] ** 2).sum()

    if kind.classes:  # the sample's step is no derivative: only the first step's is finite differences'
        inputs = [x[:1] if i in (0, 1, 2, 5) else x for i, x in enumerate(inputs)]
    assert torch.autograd.gradcheck(loss, start)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", [EVERY_KIND[0], V1, V2], ids=lambda k: k.cell)
def test_compiles_whole(backend: str, kind: GRURSSMKind, dynamic: bool) -> None:
    if dynamic and backend == "ref":
        pytest.skip("tracing the loop with symbolic shapes is slow")
    torch._dynamo.reset()
    case = Case(kind, 3, 2)
    tokens, action, first, deter, stoch, noise = case.args
    compiled = torch.compile(case.rssm.observe, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    params = [p for name, p in case.rssm.named_parameters() if not name.startswith("prior")]
    results = []
    for observe in (compiled, case.rssm.observe):
        state, stats = observe(GRUState(deter, stoch), action, tokens, first, noise)
        loss = state.deter.square().sum() + (state.stoch * torch.arange(state.stoch.shape[-1])).sum() + stats.sum()
        results.append([state.deter, stats, *torch.autograd.grad(loss, [tokens, *params])])
    assert_close(*results)


@needs_cpu
def test_second_derivative_is_refused() -> None:
    case = Case(V1, 2, 2)
    with fastwm.backend("cpu"):
        grad = torch.autograd.grad(case()[0].sum(), case.args[0], create_graph=True)
        with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
            grad[0].sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__(0, a[0][:0]), "T >= 1"),
        (lambda a: a.__setitem__(0, a[0][..., :4]), r"post \[6, 13\]"),
        (lambda a: a.__setitem__(1, a[1][:, :1]), r"action \[4, 3, 3\].*\[4, 1, 3\]"),
        (lambda a: a.__setitem__(1, a[1][..., :2]), r"input \[6, 22\].*\[6, 23\]"),
        (lambda a: a.__setitem__(2, a[2].float()), "is_first to be bool"),
        (lambda a: a.__setitem__(2, a[2][:3]), r"is_first \[4, 3\]"),
        (lambda a: a.__setitem__(3, a[3][:, :4]), r"cell\[0\] \[12, 10\]"),
        (lambda a: a.__setitem__(4, a[4].flatten(1)), r"stoch \[B, S, C\]"),
        (lambda a: a.__setitem__(4, a[4][..., :3]), r"stoch \[3, 4, 5\]"),
        (lambda a: a.__setitem__(4, a[4].float()), "one dtype"),
        (lambda a: a.__setitem__(5, a[5][:1]), "noise"),
        (lambda a: a.__setitem__(5, a[5].to("meta")), "meta"),
    ],
)
def test_wrong_arguments_are_explained(change: Callable[[list[Tensor]], None], message: str) -> None:
    case = Case(V2, 4, 3)
    change(case.args)
    with pytest.raises(ValueError, match=message):
        case()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w._replace(cell=w.cell[:3]), "four parameters"),
        (lambda w: w._replace(cell=(w.cell[0][1:], *w.cell[1:])), r"cell\[0\] \[27, 15\]"),
        (lambda w: w._replace(post_stats=w.post_stats._replace(bias=w.post_stats.bias[1:])), r"post_stats.bias \[20\]"),
        (lambda w: w._replace(input=w.input._replace(scale=w.input.bias[1:])), r"input.scale \[6\]"),
    ],
)
def test_wrong_weights_are_explained(change: Callable[[GRURSSMWeights], GRURSSMWeights], message: str) -> None:
    case = Case(V2, 4, 3)
    with pytest.raises(ValueError, match=message):
        gru_rssm_observe(*case.args, change(case.rssm.weights), case.rssm.kind)


@needs_cpu
@pytest.mark.parametrize("kind", [V1, V2], ids=["v1", "v2"])
def test_a_direct_call_with_wrong_tensors_does_not_crash(kind: GRURSSMKind) -> None:
    inputs = raw_inputs(Case(kind, 2, 2, norm=True))
    for i, x in enumerate(inputs):
        for bad in (x[..., :-1], x.to(torch.float16)) if isinstance(x, Tensor) else ():
            with pytest.raises(RuntimeError, match="fastwm"):
                torch.ops.fastwm.gru_rssm_observe(*inputs[:i], bad, *inputs[i + 1 :])
    for cell, activation in itertools.product((-1, 3), (1, 9)):
        with pytest.raises(RuntimeError, match="no such cell"):
            torch.ops.fastwm.gru_rssm_observe(*inputs[:20], cell, activation, *inputs[22:])


def settled(case: Case) -> Case:
    """Noise in the middle of each most likely class, which rounding does not move."""
    noise, unimix = case.args[5].clone(), case.rssm.kind.unimix
    case.args[5] = noise
    with torch.no_grad(), fastwm.backend("ref"):
        for t in range(len(noise)):
            stats = case()[2]
            probs = (1 - unimix) * stats[t].softmax(-1) + unimix / stats.shape[-1]
            top = probs.argmax(-1, keepdim=True)
            noise[t] = (probs.cumsum(-1) - probs / 2).gather(-1, top)[..., 0]
    return case


@needs_cpu
@pytest.mark.parametrize("kind", [EVERY_KIND[2], V1, V2, EVERY_KIND[10]], ids=lambda k: f"{k.cell}-{k.order}")
@pytest.mark.parametrize(("T", "B"), [(1, 1), (3, 16), (4, 37)])
def test_bfloat16_error_is_within_twice_pytorchs(kind: GRURSSMKind, T: int, B: int) -> None:
    """T48: only products are bfloat16; values and gradients against float64, with equal samples.

    No ReLU: its gradient's error counts the signs that rounding flips, in both.
    """
    case = Case(kind, T, B, dict(deter=96, hidden=70, stoch=5), norm=True, dtype=torch.float32)
    double = case.to(torch.float64)
    if kind.classes:
        case.args[5] = settled(double).args[5].float()
    exact = double.reference()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = case.with_grads(), case.reference()
    if kind.classes:
        assert torch.equal(ours["stoch"].double(), exact["stoch"])
        assert torch.equal(theirs["stoch"].double().round(), exact["stoch"])
    for name, truth in exact.items():
        assert ours[name].dtype == torch.float32, name
        error, allowed = (x[name].double().sub(truth).norm() for x in (ours, theirs))
        assert error <= 2 * allowed + 1e-5 * truth.norm() + 1e-6, name
        assert error <= 0.05 * truth.norm() + 1e-4, name


@needs_cpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_systems_own_sizes(variant: str) -> None:
    rssm = GRURSSM(variant, 16, 2, 48, 40, 6)
    stats = rssm.observe(rssm.initial(2), torch.zeros(3, 2, 2), torch.randn(3, 2, 16), torch.zeros(3, 2).bool())[1]
    assert stats.requires_grad and stats.shape == ((3, 2, 6, 32) if rssm.kind.classes else (3, 2, 12))


@needs_cpu
def test_peak_memory_is_not_above_the_loops() -> None:
    peak = peak_memory("""
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
rssm = GRURSSM(VARIANTS["dreamer_v2"], 256, 6, 400, 400, 32)
def sequence(T, B):
    inputs = torch.randn(T, B, 256), torch.randn(T, B, 6), torch.zeros(T, B, dtype=torch.bool)
    return fastwm.ops.gru_rssm_observe(*inputs, *rssm.initial(B), rssm.noise(T, B), rssm.weights, rssm.kind)
""")
    assert peak["cpu"] <= peak["ref"], peak
