"""The gates of recurrent cells: hand-computed values, every backend against the reference, gradients, contracts."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib, ops
from tests.conftest import INTERPRETED, Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Cell(NamedTuple):
    """A public function of gates: the widths of its tensors in units of D (0: a vector [3D]), then its numbers."""

    fn: Callable[..., Any]
    parts: tuple[int, ...]
    numbers: tuple[Any, ...] = ()
    gates: tuple[int, ...] = ()  # which tensors hold gates; the others have the carry's dtype

    @property
    def name(self) -> str:
        return self.fn.__name__

    def arguments(self, *lead: int, width: int = 8, seed: int = 0, **options: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(3 * width,) if p == 0 else (*lead, p * width) for p in self.parts]
        return [self.to(torch.randn(shape, generator=generator, dtype=torch.float64), i, **options)
                for i, shape in enumerate(shapes)]  # fmt: skip

    def to(self, x: Tensor, i: int, dtype: Any = torch.float64, carry: Any = None, device: str = "cpu") -> Tensor:
        return x.to(device, dtype if i in self.gates else carry or dtype)


CELLS = [
    Cell(ops.gru_gates, (3, 3, 1), gates=(0, 1)),
    Cell(ops.block_gru_gates, (3, 1), (4, -0.7), gates=(0,)),
    Cell(ops.layernorm_gru_gates, (3, 0, 0, 1), (1e-2, -0.7), gates=(0,)),
    Cell(ops.planet_gru_reset, (2, 1), gates=(0,)),
    Cell(ops.planet_gru_update, (1, 1, 1), gates=(1,)),
    Cell(ops.lstm_gates, (4, 4, 1), (0.3, "ifgo"), gates=(0, 1)),
    Cell(ops.lstm_gates, (4, 4, 1), (1.0, "ijfo"), gates=(0, 1)),
]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name + ("-ijfo" if "ijfo" in c.numbers else ""))


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def with_grads(cell: Cell, args: list[Tensor], seed: int = 1) -> list[Tensor]:
    """The outputs and the gradients of all tensors under random cotangents."""
    leaves = [x.detach().requires_grad_() for x in args]
    out = outputs(cell.fn(*leaves, *cell.numbers))
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in out]
    return [*(y.detach() for y in out), *torch.autograd.grad(out, leaves, cotangents)]


def vector(*values: float, device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


# ------------------------------------------------------------------------------------------- values by hand


def test_dreamer_gates_by_hand(on: Target) -> None:
    """G7 and T1: order reset, cand, update; the update gate writes; its bias is -1."""
    h = ops.block_gru_gates(vector(0.5, 1.0, 0.3, device=on.device), vector(0.2, device=on.device), 1)
    assert_close(h, vector(0.31707597, device=on.device), atol=1e-8, rtol=0)
    kept = ops.block_gru_gates(vector(0, 0, 0, device=on.device), vector(1, device=on.device), 1)
    assert_close(kept, vector(0.73105858, device=on.device), atol=1e-8, rtol=0)


def test_torch_gates_by_hand(on: Target) -> None:
    """G7, T6: Dreamer V1's cell; recurrent weight 1, recurrent bias of the candidate 0.4."""
    input, hidden = vector(0.5, 0.3, 1.0, device=on.device), vector(0.2, 0.2, 0.6, device=on.device)
    h = ops.gru_gates(input, hidden, vector(0.2, device=on.device))
    assert_close(h, vector(0.45882254, device=on.device), atol=1e-8, rtol=0)


def test_planet_gates_by_hand(on: Target) -> None:
    """G7, T6: gate biases +1, reset before the product, whose weight is 1."""
    h = vector(0.2, device=on.device)
    reset_h, update = ops.planet_gru_reset(vector(0.5 + 0.2 + 1, 0.3 + 0.2 + 1, device=on.device), h)
    assert_close(torch.cat([reset_h / h, update]), vector(0.84553473, 0.81757448, device=on.device), atol=1e-8, rtol=0)
    after = ops.planet_gru_update(update, 1.0 + reset_h, h)
    assert_close(after, vector(0.31383090, device=on.device), atol=2e-8, rtol=0)


def test_world_models_lstm_by_hand(on: Target) -> None:
    """World Models' traps 16 to 18: the forget gate's constant 1, the order i, j, f, o."""
    zero, c = vector(0, 0, 0, 0, device=on.device), vector(1, device=on.device)
    h, c = ops.lstm_gates(zero, zero, c, 1.0, "ijfo")
    assert_close(torch.cat([c, h]), vector(0.7310585786, 0.3118562749, device=on.device), atol=1e-9, rtol=0)
    h, c = ops.lstm_gates(zero, zero, vector(1, device=on.device))
    assert_close(torch.cat([c, h]), vector(0.5, 0.2310585786, device=on.device), atol=1e-9, rtol=0)
    products = zero + 0.1 * 1 + 0.1 * 0.5
    h, c = ops.lstm_gates(products, zero, vector(-0.25, device=on.device), 1.0, "ijfo")
    assert_close(torch.cat([c, h]), vector(-0.1098624686, -0.0588069643, device=on.device), atol=1e-9, rtol=0)


def test_lstm_orders_are_permutations(on: Target) -> None:
    cell = CELLS[5]
    input, hidden, c = cell.arguments(3, width=5, device=on.device)

    def swapped(x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, 5))[:, [0, 2, 1, 3]].flatten(1)

    assert_close(
        ops.lstm_gates(input, hidden, c, 0.5, "ijfo"), ops.lstm_gates(swapped(input), swapped(hidden), c, 0.5, "ifgo")
    )


def test_blocks_are_split_one_by_one(on: Target) -> None:
    """G8, T2: with 2 blocks of width 2, reset, cand, update are [0,1,6,7], [2,3,8,9], [4,5,10,11]."""
    gates = torch.randn(5, 12, dtype=torch.float64, device=on.device)
    h = torch.randn(5, 4, dtype=torch.float64, device=on.device)
    regrouped = gates[:, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]]
    assert_close(ops.block_gru_gates(gates, h, 2), ops.block_gru_gates(regrouped, h, 1))
    gates[:, :6] += 1  # the first block's gates change the first block's carry alone
    changed = (ops.block_gru_gates(gates, h, 2) - ops.block_gru_gates(regrouped, h, 1)).abs() > 1e-12
    assert changed[:, :2].all()
    assert not changed[:, 2:].any()


def test_layernorm_is_over_all_gates(on: Target) -> None:
    """The norm spans the whole 3 * deter vector, with eps inside the root, before the gates."""
    gates = vector(3, 1, -1, device=on.device)
    weight, bias, h = (
        vector(1, 2, 1, device=on.device),
        vector(0, 0, 0.5, device=on.device),
        vector(0.2, device=on.device),
    )
    scale = (8 / 3 + 1e-3) ** -0.5
    want = ops.block_gru_gates(vector(2 * scale, 0, 0.5 - 2 * scale, device=on.device), h, 1)
    assert_close(ops.layernorm_gru_gates(gates, weight, bias, h), want, atol=1e-12, rtol=0)


# ------------------------------------------------------------------------------------ against the reference


@every_cell
@pytest.mark.parametrize(
    ("lead", "width"), [((), 4), ((1,), 8), ((3, 5), 12), ((35,), 20), ((2,), 260), ((0,), 8), ((2, 0), 4)]
)
def test_equals_reference(native: Target, cell: Cell, lead: tuple[int, ...], width: int) -> None:
    args = cell.arguments(*lead, width=width, device=native.device)
    ours = with_grads(cell, args)
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(cell, args), atol=1e-10, rtol=1e-10)


@every_cell
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype, cell: Cell) -> None:
    assert _lib.host is not None
    args = cell.arguments(9, width=76, dtype=dtype)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(cell, args)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = with_grads(cell, [x.double() for x in args])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}[dtype]
    assert_close([x.double() for x in ours], exact, atol=tolerance, rtol=tolerance)


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saturated_gates(native: Target, cell: Cell, dtype: torch.dtype) -> None:
    args = cell.arguments(4, width=20, dtype=dtype, carry=torch.float32, device=native.device)
    args = [300 * x if i in cell.gates else x for i, x in enumerate(args)]
    ours = with_grads(cell, args)
    with fastwm.backend("ref"):
        exact = with_grads(cell, [x.double() for x in args])
    assert_close([x.double() for x in ours], exact, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
@every_cell
def test_threads_change_nothing(cell: Cell) -> None:
    args = cell.arguments(201, width=300, dtype=torch.float32)  # above the size from which threads share the rows
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = with_grads(cell, args)
    torch.set_num_threads(max(threads, 2))
    together = with_grads(cell, args)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


@every_cell
@pytest.mark.parametrize("carry", [torch.float32, torch.bfloat16], ids=["float32-carry", "bfloat16-carry"])
def test_bfloat16_error_is_within_twice_pytorchs(native: Target, cell: Cell, carry: torch.dtype) -> None:
    """T48: gates may be bfloat16; the arithmetic, and the carry where it is float32, stay float32."""
    args = cell.arguments(17, width=64, dtype=torch.bfloat16, carry=carry, device=native.device)
    ours = with_grads(cell, args)
    with fastwm.backend("ref"):
        pytorch, exact = with_grads(cell, args), with_grads(cell, [x.double() for x in args])
    assert [x.dtype for x in ours] == [x.dtype for x in pytorch]
    for x, theirs, truth in zip(ours, pytorch, exact, strict=True):
        if not INTERPRETED:  # Triton's interpreter cuts bits off instead of rounding
            assert (x - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-6
        assert (x - truth).norm() <= 0.01 * truth.norm()


@every_cell
@given(lead=st.lists(st.integers(0, 4), max_size=2), width=st.integers(1, 5), layout=st.integers(0, 3))
def test_any_shape_and_strides(cell: Cell, lead: list[int], width: int, layout: int) -> None:
    args = cell.arguments(*lead, width=4 * width)
    if layout == 1:  # the same shape, laid out the other way round
        args = [x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in args]
    elif layout == 2:  # parts of something wider
        args = [torch.cat([x, x + 1], -1)[..., : x.shape[-1]] for x in args]
    elif layout == 3:  # every second row
        args = [x.repeat_interleave(2, 0)[::2] for x in args]
    ours = with_grads(cell, args)
    assert ours[0].is_contiguous()
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(cell, args), atol=1e-12, rtol=1e-12)


@every_cell
def test_repeats_bitwise(on: Target, cell: Cell) -> None:
    args = cell.arguments(9 if INTERPRETED else 65, width=32, dtype=torch.float32, device=on.device)
    first = with_grads(cell, args)
    for _ in range(1 if INTERPRETED else 30):
        assert all(map(torch.equal, first, with_grads(cell, args)))


# ----------------------------------------------------------------------------------------------- gradients


@every_cell
def test_gradcheck(on: Target, cell: Cell) -> None:
    args = [x.requires_grad_() for x in cell.arguments(1 if INTERPRETED else 2, width=4, device=on.device)]
    assert torch.autograd.gradcheck(lambda *x: cell.fn(*x, *cell.numbers), args)


@every_cell
def test_second_derivatives(native: Target, cell: Cell) -> None:
    args = [x.requires_grad_() for x in cell.arguments(2, width=4, device=native.device)]
    grads = torch.autograd.grad(outputs(cell.fn(*args, *cell.numbers))[0].sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        sum(g.square().sum() for g in grads).backward()
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(lambda *x: cell.fn(*x, *cell.numbers), args)


@every_cell
def test_only_what_needs_a_gradient_gets_one(native: Target, cell: Cell) -> None:
    *others, carry = cell.arguments(3, device=native.device)
    carry.requires_grad_()
    outputs(cell.fn(*others, carry, *cell.numbers))[0].sum().backward()
    assert carry.grad is not None
    assert all(x.grad is None for x in others)
    with torch.no_grad():
        assert outputs(cell.fn(*others, carry, *cell.numbers))[0].grad_fn is None


def test_one_output_of_an_lstm_is_enough(native: Target) -> None:
    cell = CELLS[5]
    for output in (0, 1):
        args = [x.requires_grad_() for x in cell.arguments(3, device=native.device)]
        ours = torch.autograd.grad(cell.fn(*args, *cell.numbers)[output].sum(), args, materialize_grads=True)
        with fastwm.backend("ref"):
            theirs = torch.autograd.grad(cell.fn(*args, *cell.numbers)[output].sum(), args, materialize_grads=True)
        assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------------ contracts


def operator_arguments(cell: Cell, args: list[Tensor]) -> tuple[Any, ...]:
    return (*args, *(n == "ijfo" if isinstance(n, str) else n for n in cell.numbers))


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(native: Target, cell: Cell, dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the same code, slowly")
    op = getattr(getattr(torch.ops, native.library), cell.name).default
    reverse = getattr(getattr(torch.ops, native.library), f"{cell.name}_backward").default
    for lead in [(3,), (2, 2)][: 1 if INTERPRETED else 2]:
        args = cell.arguments(*lead, dtype=dtype, carry=torch.float32, device=native.device)
        torch.library.opcheck(op, operator_arguments(cell, args))
        leaves = [x.requires_grad_() for x in args]
        torch.library.opcheck(op, operator_arguments(cell, leaves))
        strided = [x.detach().mT.contiguous().mT.requires_grad_() if x.dim() > 1 else x for x in leaves]
        torch.library.opcheck(op, operator_arguments(cell, strided))
        args = [x.detach() for x in args]
        grads = [torch.ones_like(args[-1])] * (2 if cell.name in ("planet_gru_reset", "lstm_gates") else 1)
        stats = [op(*args, *cell.numbers)[1]] if cell.name == "layernorm_gru_gates" else []
        numbers = operator_arguments(cell, [])[len(stats) :]
        torch.library.opcheck(reverse, (*grads, *args, *stats, *numbers))


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for cell in CELLS:
        for name in (cell.name, f"{cell.name}_backward"):
            ours, theirs = (
                getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton")
            )
            assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


@every_cell
def test_compiles_whole_with_dynamic_shapes(native: Target, cell: Cell) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: 2 * outputs(cell.fn(*x, *cell.numbers))[0], fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for rows in [4, 6]:
        args = [x.requires_grad_() for x in cell.arguments(rows, device=native.device)]
        got, want = compiled(*args), 2 * outputs(cell.fn(*args, *cell.numbers))[0]
        assert_close(got, want)
        grads = (torch.autograd.grad(x.square().sum(), args, materialize_grads=True) for x in (got, want))
        assert_close(*grads)


@every_cell
def test_vmap_and_functional_gradients(native: Target, cell: Cell) -> None:
    per_entry = [cell.arguments(3, seed=seed, device=native.device) for seed in range(4)]
    args = [torch.stack(x) for x in zip(*per_entry, strict=True)]

    def fn(*x: Tensor) -> Tensor:
        return outputs(cell.fn(*x, *cell.numbers))[0]

    assert_close(torch.vmap(fn)(*args), torch.stack([fn(*x) for x in per_entry]))
    dims = (1, *(None for _ in args[1:]))
    shared = torch.vmap(fn, in_dims=dims)(args[0].movedim(0, 1), *per_entry[0][1:])
    assert_close(shared, torch.stack([fn(x[0], *per_entry[0][1:]) for x in per_entry]))
    which = tuple(range(len(args)))
    mapped = torch.vmap(torch.func.grad(lambda *x: fn(*x).sum(), which))(*args)
    singly = [torch.func.grad(lambda *x: fn(*x).sum(), which)(*x) for x in per_entry]
    assert_close(mapped, tuple(torch.stack(x) for x in zip(*singly, strict=True)))


def test_float16_is_served_by_the_reference() -> None:
    cell = CELLS[0]
    assert cell.fn(*cell.arguments(3, dtype=torch.float16)).dtype == torch.float16
    assert cell.fn(*cell.arguments(3, dtype=torch.float16, carry=torch.float32)).dtype == torch.float32


def test_norm_weights_are_cast_to_the_carry(native: Target) -> None:
    cell = CELLS[2]
    gates, weight, bias, h = cell.arguments(3, dtype=torch.bfloat16, device=native.device)
    h = h.float()
    want = ops.layernorm_gru_gates(gates, weight.float(), bias.float(), h)
    assert_close(ops.layernorm_gru_gates(gates, weight, bias, h), want)


WRONG = [
    (ops.gru_gates, lambda i, k, h: (i[:, :-1], k, h), r"input \[\.\.\., 3 \* D\].*input \[4, 23\]"),
    (ops.gru_gates, lambda i, k, h: (i, k[:2], h), r"hidden \[2, 24\]"),
    (ops.gru_gates, lambda i, k, h: (i, k.float(), h), "hidden.*torch.float32"),
    (ops.gru_gates, lambda i, k, h: (i.float(), k.float(), h), "h.*torch.float64.*input.*torch.float32"),
    (ops.gru_gates, lambda i, k, h: (i, k, h.to("meta")), "h.*meta"),
    (ops.gru_gates, lambda i, k, h: (i.long(), k.long(), h.long()), "torch.int64"),
    (ops.gru_gates, lambda i, k, h: (i.sum(), k.sum(), h.sum()), r"h \[\]"),
    (ops.block_gru_gates, lambda i, k, h: (i, h, 3), "width 8 does not divide into 3 blocks"),
    (ops.block_gru_gates, lambda i, k, h: (i, h, 0), "0 blocks"),
    (ops.layernorm_gru_gates, lambda i, k, h: (i, k, k[0], h), r"weight \[24\].*got \[4, 24\]"),
    (ops.layernorm_gru_gates, lambda i, k, h: (i, k[0], k[0].to("meta"), h), "bias.*meta"),
    (ops.layernorm_gru_gates, lambda i, k, h: (i[:, :0], k[0, :0], k[0, :0], h[:, :0]), "width 0"),
    (ops.planet_gru_reset, lambda i, k, h: (i, h), r"gates \[\.\.\., 2 \* D\]"),
    (ops.planet_gru_update, lambda i, k, h: (h.float(), h, h), "update.*torch.float32"),
    (ops.planet_gru_update, lambda i, k, h: (h, i, h), r"cand \[4, 24\]"),
    (ops.lstm_gates, lambda i, k, h: (i, k, h), r"input \[\.\.\., 4 \* D\].* beside c"),
    (ops.lstm_gates, lambda i, k, h: (i[:, :8], k[:, :8], h[:, :2], 0.0, "iofg"), "'iofg'"),
]


@pytest.mark.parametrize(("fn", "change", "message"), WRONG)
def test_wrong_arguments_are_explained(fn, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        fn(*change(*CELLS[0].arguments(4)))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    i, k, h = CELLS[0].arguments(4)
    library = torch.ops.fastwm
    stats = torch.zeros(4, 2, dtype=torch.float64)
    for op, bad in [
        (library.gru_gates, (i[:, :-1], k, h)),
        (library.gru_gates, (i, k.float(), h)),
        (library.gru_gates, (i.float(), k.float(), h)),
        (library.gru_gates, (i.sum(), k.sum(), h.sum())),
        (library.gru_gates_backward, (h[:2], i, k, h)),
        (library.block_gru_gates, (i, h, 0, -1.0)),
        (library.block_gru_gates, (i, h, 3, -1.0)),
        (library.layernorm_gru_gates, (i, k[0, 1:], k[0], h, 1e-3, -1.0)),
        (library.layernorm_gru_gates, (i[0, 0], k[0], k[0], h[0, 0], 1e-3, -1.0)),
        (library.layernorm_gru_gates_backward, (h, i, k[0], k[0], h, stats[:3], -1.0)),
        (library.layernorm_gru_gates_backward, (h, i, k[0], k[0], h, stats.float(), -1.0)),
        (library.lstm_gates, (i, k, h, 0.0, False)),
        (library.planet_gru_update, (h, h, h.half())),
    ]:
        with pytest.raises(RuntimeError, match="fastwm"):
            op(*bad)


@pytest.mark.gpu
@every_cell
def test_captures_into_a_cuda_graph(cell: Cell) -> None:
    args = cell.arguments(64, dtype=torch.float32, device="cuda")
    cell.fn(*args, *cell.numbers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cell.fn(*args, *cell.numbers)
    args[0].add_(1)
    graph.replay()
    assert_close(captured, cell.fn(*args, *cell.numbers))


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
