"""Whole sequences of recurrent cells: single steps, resets, PyTorch's layers. See test_contract.py for the rest."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fastwm
from fastwm import nn as fnn
from fastwm import ops
from fastwm.ops import scans
from tests.backends import Target, needs_cpu, needs_kernel
from tests.cases import CASES
from tests.cases.case import convert, lay_out
from tests.cases.run import assert_near, raw_call, reference, run

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("cell_scan")]

STEPS = {name: getattr(ops, f"{name}_step") for name in ("gru", "lstm", "layernorm_gru", "planet_gru")}
SCANS = [name for name in CASES if "_scan" in name and "block" not in name]
one_of_each = pytest.mark.parametrize("name", [f"{cell}_scan" for cell in STEPS])


def inputs(name: str, device: str = "cpu", dtype: torch.dtype = torch.float64, **sizes: Any) -> tuple[Any, ...]:
    return convert(CASES[name].args(dict(T=4, B=3, D=8) | sizes, dtype), device=device)


def first_of(args: tuple[Any, ...]) -> Tensor:
    return next(x for x in args if isinstance(x, Tensor) and x.dtype == torch.bool)


# Against the reference, and the reference against the single steps


@pytest.mark.parametrize("name", SCANS)
def test_the_reference_is_the_loop_over_single_steps(name: str) -> None:
    case = CASES[name]
    carried = 2 if name.startswith("lstm") else 1

    def loop(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        carries, weights = rest[:carried], rest[carried:]
        at = next(i for i, w in enumerate(weights) if isinstance(w, Tensor) and w.dtype == torch.bool)
        is_first, outputs = weights[at], []
        for t in range(len(x)):
            carries = STEPS[name.split("_scan")[0]](x[t], *carries, *weights[:at], is_first[t], *weights[at + 1 :])
            carries = carries if isinstance(carries, tuple) else (carries,)
            outputs.append(carries[0])
        return torch.stack(outputs), *carries

    args = inputs(name, T=5, B=4)
    assert_near(case, reference(case, args), run(replace(case, operator=loop), args), 1e-12)


# Resets


@one_of_each
def test_a_reset_forgets_and_stops_the_gradient(on: Target, name: str) -> None:
    """What precedes a reset, even NaN in the carry, is not seen after it, and gets no gradient from there."""
    x, h, *rest = inputs(name, on.device, resets=0.0)
    is_first = first_of(tuple(rest))
    is_first[2, 0] = is_first[0, 1] = True
    carries = [h, rest[0]] if name == "lstm_scan" else [h]

    def scan(*carries: Tensor) -> tuple[Tensor, ...]:
        return CASES[name].operator(x, *carries, *rest[len(carries) - 1 :])

    output = scan(*carries)[0]
    broken = [carry.detach().clone() for carry in carries]
    for carry in broken:
        carry[1] = torch.nan
    assert torch.equal(scan(*broken)[0], output)
    d_x, d_h = torch.autograd.grad(output[2:, 0].sum(), (x, h), retain_graph=True)
    assert not d_x[:2].any() and not d_h.any() and d_x[2:, 0].all()
    (d_h,) = torch.autograd.grad(output.sum(), h)
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


def test_layers_compile_whole() -> None:
    torch._dynamo.reset()
    x, first = torch.randn(4, 3, 5), torch.rand(4, 3) < 0.3
    for layers in (fnn.GRU(5, 8, 2), fnn.LSTM(5, 8, forget_bias=1.0), fnn.LayerNormGRU(5, 8)):
        compiled = torch.compile(lambda *args, f=layers: f(*args), fullgraph=True, backend="aot_eager")
        assert_close(compiled(x, None, first), layers(x, None, first))


@one_of_each
def test_bfloat16_of_a_start_that_lies_anywhere(native: Target, name: str) -> None:
    """Tensor cores read 16 bytes at once, where a caller's arrays begin there."""
    x, h, *rest = inputs(name, native.device, torch.float32, T=3, B=4, D=96, X=32)
    with torch.autocast(native.device, torch.bfloat16):
        want, got = (CASES[name].operator(x, start, *rest)[0] for start in (h, lay_out(h, "offset")))
    assert_close(got, want, atol=0.03, rtol=0)


@one_of_each
def test_bfloat16_weights_beside_a_float32_carry(on: Target, name: str) -> None:
    x, *rest = inputs(name, on.device, T=3, B=2)
    exact = CASES[name].operator(x, *rest)
    carried = 2 if name == "lstm_scan" else 1
    carries, weights = convert(rest[:carried], torch.float32), convert(rest[carried:], torch.bfloat16)
    for got, want in zip(CASES[name].operator(x.bfloat16(), *carries, *weights), exact, strict=True):
        assert got.dtype == torch.float32
        assert_close(got.double(), want, atol=5e-2, rtol=5e-2)


@needs_cpu
def test_an_unknown_cell_of_the_raw_operator_is_refused() -> None:
    op, args = raw_call(CASES["gru_scan"], CASES["gru_scan"].args())
    with pytest.raises(RuntimeError, match="no such cell"):
        op(*(args | {"cell": 9}).values())
