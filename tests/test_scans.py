"""Whole sequences of recurrent cells: every backend against the reference, PyTorch's layers, resets, contracts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import fastwm
from fastwm import _lib, ops
from fastwm import nn as fnn
from fastwm.ops import scans
from tests.conftest import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

# name -> (the scan, numbers behind its tensors, its weights' shapes by X and D, its single step)
Shapes = Callable[[int, int], dict[str, tuple[int, ...] | None]]
torch_shapes = {
    gates: lambda X, D, n=gates: {"w_ih": (n * D, X), "w_hh": (n * D, D), "b_ih": (n * D,), "b_hh": (n * D,)}
    for gates in (3, 4)
}
without_bias = {
    gates: lambda X, D, n=gates: {"w_ih": (n * D, X), "w_hh": (n * D, D), "b_ih": None, "b_hh": None}
    for gates in (3, 4)
}
CELLS: dict[str, tuple[Callable[..., Any], dict[str, Any], Shapes, Callable[..., Any]]] = {
    "gru": (ops.gru_scan, {}, torch_shapes[3], ops.gru_step),
    "gru without bias": (ops.gru_scan, {}, without_bias[3], ops.gru_step),
    "lstm": (ops.lstm_scan, {"forget_bias": 1.0}, torch_shapes[4], ops.lstm_step),
    "lstm without bias": (ops.lstm_scan, {}, without_bias[4], ops.lstm_step),
    "lstm ijfo": (ops.lstm_scan, {"forget_bias": 0.5, "order": "ijfo"}, torch_shapes[4], ops.lstm_step),
    "layernorm": (
        ops.layernorm_gru_scan,
        {},
        lambda X, D: {"w": (3 * D, X + D), "b": (3 * D,), "scale": (3 * D,), "shift": (3 * D,)},
        ops.layernorm_gru_step,
    ),
    "layernorm hx": (
        ops.layernorm_gru_scan,
        {"order": "hx", "eps": 0.1, "update_bias": 0.5},
        lambda X, D: {"w": (3 * D, X + D), "b": None, "scale": (3 * D,), "shift": (3 * D,)},
        ops.layernorm_gru_step,
    ),
    "planet": (
        ops.planet_gru_scan,
        {},
        lambda X, D: {"w_ru": (2 * D, X + D), "b_ru": (2 * D,), "w_c": (D, X + D), "b_c": (D,)},
        ops.planet_gru_step,
    ),
}
every_cell = pytest.mark.parametrize("name", CELLS)
one_of_each = pytest.mark.parametrize("name", ["gru", "lstm", "layernorm", "planet"])


class Case:
    """A scan with its tensors: by name, x, the carries, and the weights, all drawn."""

    def __init__(
        self,
        name: str,
        T: int,
        B: int,
        X: int = 3,
        D: int = 8,
        resets: float | None = 0.2,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scan, self.numbers, shapes, self.step = CELLS[name]
        carries: dict[str, tuple[int, ...] | None] = {"h": (B, D)}
        carries |= {"c": (B, D)} if name.startswith("lstm") else {}
        self.tensors: dict[str, Tensor | None] = {}
        for key, shape in {"x": (T, B, X), **carries, **shapes(X, D)}.items():
            draw = None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64)
            if draw is not None:
                draw = draw / (shape[1] ** 0.5 if key.startswith("w") else 1.0)  # type: ignore[index]
                draw = draw.to(device, dtype).requires_grad_()
            self.tensors[key] = draw
        first = torch.rand(T, B, generator=generator) < (resets or 0)
        self.is_first = first.to(device) if resets is not None else None
        self.carries = len(carries)

    def __call__(self, **changed: Any) -> tuple[Tensor, ...]:
        tensors = self.tensors | {key: x for key, x in changed.items() if key in self.tensors}
        numbers = self.numbers | {key: x for key, x in changed.items() if key not in tensors}
        return self.scan(*tensors.values(), **({"is_first": self.is_first} | numbers))

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in self.tensors.values() if x is not None]

    def with_grads(self, outputs: tuple[Tensor, ...] | None = None, only: int | None = None) -> dict[str, Tensor]:
        """All outputs, and all gradients under random cotangents of all of them or of one."""
        outputs = self() if outputs is None else outputs
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
        chosen = slice(None) if only is None else slice(only, only + 1)
        grads = torch.autograd.grad(outputs[chosen], self.leaves, cotangents[chosen], materialize_grads=True)
        names = [f"d_{key}" for key, x in self.tensors.items() if x is not None]
        values = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
        return values | dict(zip(names, grads, strict=True))

    def reference(self, only: int | None = None) -> dict[str, Tensor]:
        with fastwm.backend("ref"):
            return self.with_grads(only=only)


def assert_all_close(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == exact.keys()
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


# Against the reference, and the reference against the single steps


@every_cell
def test_the_reference_is_the_loop_over_single_steps(name: str) -> None:
    case = Case(name, 5, 4)
    x, *rest = case.tensors.values()
    carries, weights = rest[: case.carries], rest[case.carries :]
    outputs = []
    for t in range(5):
        assert x is not None and case.is_first is not None
        carries = case.step(x[t], *carries, *weights, is_first=case.is_first[t], **case.numbers)
        carries = carries if isinstance(carries, tuple) else (carries,)
        outputs.append(carries[0])
    steps = case.with_grads((torch.stack(outputs), *carries))  # type: ignore[arg-type]
    assert_all_close(case.reference(), steps, 1e-12)


@every_cell
@pytest.mark.parametrize("resets", [None, 0.3, 1.0])
@pytest.mark.parametrize(("T", "B", "D"), [(1, 1, 1), (1, 3, 5), (3, 16, 32), (5, 33, 17), (64, 2, 8)])
def test_equals_reference(native: Target, name: str, resets: float | None, T: int, B: int, D: int) -> None:
    case = Case(name, T, B, D=D, resets=resets, device=native.device)
    assert_all_close(case.with_grads(), case.reference(), 1e-10)


@one_of_each
@pytest.mark.parametrize(("T", "B"), [(2, 1024), (64, 16)])
def test_many_rows_and_many_steps(native: Target, name: str, T: int, B: int) -> None:
    case = Case(name, T, B, D=48, device=native.device)
    assert_all_close(case.with_grads(), case.reference(), 1e-10)


@needs_cpu
@one_of_each
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("B", "D"), [(20, 40), (3, 288), (20, 288), (200, 288)])
def test_threads_by_rows_and_by_columns(name: str, count: int, B: int, D: int) -> None:
    """In float64, weights of width 288 go beyond a core's cache: few rows are then split by columns."""
    case = Case(name, 3, B, D=D)
    with threads(count):
        ours = case.with_grads()
    assert_all_close(ours, case.reference(), 1e-10)


@one_of_each
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set(name: str, isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    case, exact = Case(name, 6, 21, D=75, dtype=dtype), Case(name, 6, 21, D=75)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = case.with_grads()
    finally:
        _lib.host.set_isa(before)
    assert_all_close(ours, exact.reference(), {torch.float32: 1e-5, torch.float64: 1e-11}[dtype])


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(CELLS)),
    T=st.integers(1, 7),
    B=st.integers(0, 9),
    X=st.integers(0, 4),
    D=st.integers(1, 40),
    resets=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_sizes_and_resets(name: str, T: int, B: int, X: int, D: int, resets: float, seed: int) -> None:
    case = Case(name, T, B, X, D, resets, seed=seed)
    assert_all_close(case.with_grads(), case.reference(), 1e-10)


@one_of_each
def test_gradients_of_one_output(native: Target, name: str) -> None:
    case = Case(name, 4, 3, device=native.device)
    for i in range(len(case())):
        assert_all_close(case.with_grads(only=i), case.reference(only=i), 1e-10)


@one_of_each
def test_gradients_are_the_derivatives(native: Target, name: str) -> None:
    case = Case(name, 3, 2, 2, 3, device=native.device)
    names = [key for key, x in case.tensors.items() if x is not None]
    fast = torch.autograd.gradcheck(lambda *leaves: case(**dict(zip(names, leaves))), case.leaves, fast_mode=True)
    assert fast


@one_of_each
def test_any_strides(native: Target, name: str) -> None:
    case = Case(name, 4, 3, device=native.device)
    want = case.reference()
    for key, x in case.tensors.items():
        if x is not None and x.dim() > 1:
            case.tensors[key] = x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    assert case.is_first is not None
    case.is_first = case.is_first.T.contiguous().T
    assert_all_close(case.with_grads(), want, 1e-10)


# Resets


@one_of_each
def test_a_reset_forgets_and_stops_the_gradient(on: Target, name: str) -> None:
    """T7: what precedes a reset, even NaN in the carry, is not seen after it, and gets no gradient from there."""
    case = Case(name, 4, 3, device=on.device, resets=0.0)
    assert case.is_first is not None
    case.is_first[2, 0] = case.is_first[0, 1] = True
    output = case()[0]
    nan = {key: case.tensors[key].detach().clone() for key in ("h", "c") if key in case.tensors}  # type: ignore[union-attr]
    for carry in nan.values():
        carry[1] = torch.nan
    assert torch.equal(case(**nan)[0], output)
    (d_x, d_h) = torch.autograd.grad(output[2:, 0].sum(), (case.tensors["x"], case.tensors["h"]), retain_graph=True)  # type: ignore[arg-type]
    assert not d_x[:2].any() and not d_h.any() and d_x[2:, 0].all()
    d_h = torch.autograd.grad(output.sum(), case.tensors["h"])[0]  # type: ignore[arg-type]
    assert not d_h[1].any() and d_h[[0, 2]].all()


# The modules against PyTorch's


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "bias"), [(1, True), (3, True), (2, False)])
def test_layers_are_torchs(on: Target, kind: str, layers: int, bias: bool, batch_first: bool) -> None:
    arguments = (5, 8, layers, bias, batch_first)
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(*arguments).double().to(on.device)
    ours = getattr(fnn, kind)(*arguments).double().to(on.device)
    ours.load_state_dict(theirs.state_dict())
    to = dict(dtype=torch.float64, device=on.device)
    x = torch.randn(6, 4, 5, **to).requires_grad_()
    hx = torch.randn(2, layers, 6 if batch_first else 4, 8, **to)
    start = hx[0] if kind == "GRU" else (hx[0], hx[1])
    results = []
    for module in (ours, theirs):
        for args in ((x,), (x, start)):
            output, last = module(*args)
            last = last if kind == "LSTM" else (last,)
            loss = output.square().sum() + sum((i + 1) * y.sin().sum() for i, y in enumerate(last))
            results.append([output, *last, *torch.autograd.grad(loss, [x, *module.parameters()])])
    assert_close(results[0], results[2])
    assert_close(results[1], results[3])


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_cudnns_way_equals_reference(kind: str, bias: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves a plain cell without resets on a GPU; on the CPU PyTorch's own layer takes its place."""
    if device == "cpu":
        monkeypatch.setattr(scans, "_is_cudnns", lambda *_: True)
    torch.manual_seed(0)
    options = {"forget_bias": 0.7} if kind == "LSTM" else {}
    module = getattr(fnn, kind)(5, 8, 2, bias, **options).double().to(device)
    x = torch.randn(6, 4, 5, dtype=torch.float64, device=device, requires_grad=True)

    def run() -> list[Tensor]:
        output, last = module(x)
        loss = output.square().sum() + sum(y.sin().sum() for y in (last if kind == "LSTM" else [last]))
        return [output, *torch.autograd.grad(loss, [x, *module.parameters()])]

    ours = run()
    monkeypatch.setattr(scans, "_is_cudnns", lambda *_: False)
    with fastwm.backend("ref"):
        assert_close(ours, run())


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_layers_take_one_sequence_and_dropout(kind: str) -> None:
    theirs, ours = getattr(nn, kind)(5, 8, 2).double(), getattr(fnn, kind)(5, 8, 2, dropout=0.5).double()
    ours.load_state_dict(theirs.state_dict())
    x, h = torch.randn(6, 5, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    state = h if kind == "GRU" else (h, h)
    assert not torch.equal(ours(x, state)[0], theirs(x, state)[0])
    assert_close(ours.eval()(x, state), theirs(x, state))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_reset(kind: str, batch_first: bool) -> None:
    """A reset in the middle is a second call from zero."""
    layers = getattr(fnn, kind)(5, 8, 2, batch_first=batch_first).double()
    x, first = torch.randn(6, 4, 5, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.bool)
    first[3] = True
    time, turn = (1, lambda y: y.transpose(0, 1)) if batch_first else (0, lambda y: y)
    whole, last = layers(turn(x), is_first=turn(first))
    parts = [layers(turn(part)) for part in (x[:3], x[3:])]
    assert_close(whole, torch.cat([output for output, _ in parts], time))
    assert_close(last, parts[1][1])


def test_lstm_forget_bias() -> None:
    """The constant is as good as one in the forget gate's bias."""
    ours, theirs = fnn.LSTM(3, 4, forget_bias=1.0), nn.LSTM(3, 4)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.bias_ih_l0[4:8] += 1
    x = torch.randn(5, 2, 3)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("order", ["xh", "hx"])
def test_layernorm_gru_is_the_loop_over_its_cell(on: Target, order: Any) -> None:
    torch.manual_seed(0)
    cell = fnn.LayerNormGRUCell(5, 8, order=order).double().to(on.device)
    layer = fnn.LayerNormGRU(5, 8, order=order).double().to(on.device)
    layer.load_state_dict(cell.state_dict())
    x, first = torch.randn(6, 4, 5, dtype=torch.float64, device=on.device), torch.rand(6, 4, device=on.device) < 0.3
    h, outputs = None, []
    for t in range(6):
        h = cell(x[t], h, first[t])
        outputs.append(h)
    output, last = layer(x, is_first=first)
    assert_close(output, torch.stack(outputs))
    assert_close(last, h)


def test_unsupported_layers_are_explained() -> None:
    for make in (lambda: fnn.GRU(3, 4, bidirectional=True), lambda: fnn.LSTM(3, 4, proj_size=2)):
        with pytest.raises(ValueError, match="use torch.nn"):
            make()
    layers, x = fnn.GRU(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match=r"carries \[1, 2, 4\], got \[2, 4\]"):
        layers(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"is_first \[5, 2\], got \[2, 5\]"):
        layers(x, is_first=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="PackedSequence"):
        layers(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3])))


# Contracts


@needs_cpu
@one_of_each
@pytest.mark.parametrize("count", [1, 2])
def test_repeats_bitwise(name: str, count: int) -> None:
    case = Case(name, 8, 16, D=72, dtype=torch.float32)
    with threads(count):
        first = case.with_grads()
        for _ in range(100):
            again = case.with_grads()
            assert all(torch.equal(x, again[key]) for key, x in first.items())


def raw_inputs(case: Case) -> list[Any]:
    """The arguments of the operator itself, up to `save`."""
    captured: list[Any] = []
    module = __import__("sys").modules["fastwm.ops.scans"]
    forward = module._forward

    class Capture:
        library = forward.library

        def __call__(self, library: str, *inputs: Any) -> Any:
            captured.extend(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs[:-2])
            return forward(library, *inputs)

    module._forward = Capture()
    try:
        case()
    finally:
        module._forward = forward
    return captured


@needs_cpu
@one_of_each
def test_without_gradients_nothing_is_saved(name: str) -> None:
    case = Case(name, 4, 3)
    want = case()
    with torch.no_grad():
        got = case()
    assert all(torch.equal(a, b) for a, b in zip(got, want)) and got[0].grad_fn is None
    raw = torch.ops.fastwm.cell_scan(*raw_inputs(case), False, False)
    assert all(x.numel() == 0 for x in raw[3:])


@needs_cpu
@one_of_each
def test_opcheck(name: str) -> None:
    for T, B, dtype in [(1, 1, torch.float32), (3, 2, torch.float64)]:
        inputs = raw_inputs(Case(name, T, B, dtype=dtype))
        forward, backward = torch.ops.fastwm.cell_scan.default, torch.ops.fastwm.cell_scan_backward.default
        for save in (True, False):
            torch.library.opcheck(forward, (*inputs, save, False))
        output, h_T, c_T, *saved = forward(*inputs, True, False)
        grads = (output, h_T, c_T if len(c_T) else None)
        torch.library.opcheck(backward, (*grads, output, *saved, *inputs[1:], False))
        floats = [isinstance(x, Tensor) and x.is_floating_point() for x in inputs]
        leaves = [x.requires_grad_() if is_float else x for x, is_float in zip(inputs, floats)]
        torch.library.opcheck(forward, (*leaves, True, False))


@one_of_each
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(native: Target, name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    case = Case(name, 3, 2, device=native.device)
    names = [key for key, x in case.tensors.items() if x is not None]
    compiled = torch.compile(
        lambda *leaves: case(**dict(zip(names, leaves))), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    assert_all_close(case.with_grads(compiled(*case.leaves)), case.with_grads(), 1e-12)


def test_layers_compile_whole() -> None:
    torch._dynamo.reset()
    x, first = torch.randn(4, 3, 5), torch.rand(4, 3) < 0.3
    for layers in (fnn.GRU(5, 8, 2), fnn.LSTM(5, 8, forget_bias=1.0), fnn.LayerNormGRU(5, 8)):
        compiled = torch.compile(lambda *args, f=layers: f(*args), fullgraph=True, backend="aot_eager")
        assert_close(compiled(x, None, first), layers(x, None, first))


@needs_cpu
@one_of_each
def test_functional_gradients(name: str) -> None:
    case = Case(name, 3, 2)
    x = case.tensors["x"]
    assert x is not None
    grad = torch.func.grad(lambda x: case(x=x)[0].square().sum())(x.detach())
    assert_close(grad, torch.autograd.grad(case()[0].square().sum(), x)[0])


@needs_cpu
def test_second_derivative_is_refused() -> None:
    case = Case("gru", 2, 2)
    with fastwm.backend("cpu"):
        grad = torch.autograd.grad(case()[0].sum(), case.leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
            grad[0].sum().backward()


@one_of_each
@pytest.mark.parametrize(("T", "B"), [(1, 1), (3, 7), (4, 37)])
def test_bfloat16_error_is_within_twice_pytorchs(native: Target, name: str, T: int, B: int) -> None:
    """T48: under autocast only products are bfloat16; values and gradients against float64."""
    case = Case(name, T, B, D=96, X=32, dtype=torch.float32, device=native.device)
    exact = Case(name, T, B, D=96, X=32, device=native.device).reference()
    with torch.autocast(native.device, torch.bfloat16):
        ours, theirs = case.with_grads(), case.reference()
    for key, truth in exact.items():
        assert ours[key].dtype == torch.float32, key
        error, allowed = (values[key].double().sub(truth).norm() for values in (ours, theirs))
        assert error <= 2 * allowed + 1e-5 * truth.norm() + 1e-6, key
        assert error <= 0.05 * truth.norm() + 1e-4, key


@one_of_each
def test_bfloat16_of_a_start_that_lies_anywhere(native: Target, name: str) -> None:
    """Tensor cores read 16 bytes at once, where a caller's arrays begin there."""
    case = Case(name, 3, 4, D=96, X=32, dtype=torch.float32, device=native.device)
    h = case.tensors["h"]
    assert h is not None
    with torch.autocast(native.device, torch.bfloat16):
        want, got = case()[0], case(h=torch.cat([h.new_zeros(1), h.detach().flatten()])[1:].view_as(h))[0]
    assert_close(got, want, atol=0.03, rtol=0)


@one_of_each
def test_bfloat16_weights_beside_a_float32_carry(on: Target, name: str) -> None:
    case = Case(name, 3, 2, device=on.device)
    exact = case()
    weights = {key: x.bfloat16() for key, x in case.tensors.items() if x is not None and key not in ("h", "c")}
    carries = {key: x.float() for key, x in case.tensors.items() if x is not None and key in ("h", "c")}
    for got, want in zip(case(**weights, **carries), exact, strict=True):
        assert got.dtype == torch.float32
        assert_close(got.double(), want, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(0, 3, 3)}, "T >= 1"),
        ({"x": torch.zeros(4, 3)}, r"x \[T, B, X\]"),
        ({"h": torch.zeros(3, 0).double()}, "D >= 1"),
        ({"h": torch.zeros(2, 8).double()}, r"h \[3, 8\] torch.float64 cpu, got \[2, 8\]"),
        ({"c": torch.zeros(3, 8)}, r"c \[3, 8\] torch.float64 cpu, got \[3, 8\] torch.float32"),
        ({"is_first": torch.zeros(4, 3)}, r"is_first \[4, 3\] torch.bool cpu, got \[4, 3\] torch.float32"),
        ({"is_first": torch.zeros(3, 4, dtype=torch.bool)}, r"is_first \[4, 3\]"),
        ({"w_ih": torch.zeros(32, 4).double()}, r"weight_ih \[32, 3\]"),
        ({"w_hh": torch.zeros(32, 8)}, r"weight_hh \[32, 8\] torch.float64 cpu, got \[32, 8\] torch.float32"),
        ({"w_ih": torch.zeros(32, 3)}, "h's dtype"),
        ({"b_hh": torch.zeros(32, device="meta").double()}, "meta"),
        ({"order": "fgio"}, "'fgio'"),
    ],
)
def test_wrong_arguments_are_explained(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case("lstm", 4, 3)(**changed)


def test_wrong_orders_are_explained() -> None:
    with pytest.raises(ValueError, match="'hh'"):
        Case("layernorm", 4, 3)(order="hh")


@needs_cpu
@one_of_each
def test_a_direct_call_with_wrong_tensors_does_not_crash(name: str) -> None:
    inputs = raw_inputs(Case(name, 2, 2))
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            for bad in (x[..., :-1], x.to(torch.float16), x[None]):
                with pytest.raises(RuntimeError, match="fastwm"):
                    torch.ops.fastwm.cell_scan(*inputs[:i], bad, *inputs[i + 1 :], True, False)
    with pytest.raises(RuntimeError, match="no such cell"):
        torch.ops.fastwm.cell_scan(*inputs[:7], 9, *inputs[8:], True, False)
