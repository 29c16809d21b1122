"""The block GRU over a sequence: every backend against the reference, gradients, resets, contracts (T1-T3, T7)."""

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
from fastwm.nn import BlockGRU, BlockGRUCell
from fastwm.ops import block_gru_scan
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

TINY: dict[str, Any] = dict(input_size=(7, 3), hidden_size=8, embed_size=6, blocks=2)
WIDE: dict[str, Any] = dict(input_size=5, hidden_size=512, embed_size=64, blocks=8)  # in float64 split by columns
Args = tuple[list[Tensor], Tensor, Tensor]  # inputs, hx, is_first


def make(
    T: int, B: int, sizes: dict[str, Any] = TINY, dtype: torch.dtype = torch.float64, resets: float = 0.2, seed: int = 0
) -> tuple[BlockGRU, Args]:
    """A module with every parameter moved off its initial value, and its arguments."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    gru = BlockGRU(**sizes).to(dtype)
    with torch.no_grad():
        for p in gru.parameters():
            fan_in = p.shape[-1] if p.ndim == 2 else p.shape[-2] if p.ndim == 3 else 25
            p.copy_((p.ndim == 1) * p + draw(*p.shape) / fan_in**0.5)
    inputs = [draw(T, B, layer.linear.weight.shape[1]).requires_grad_() for layer in gru.embed_inputs]
    is_first = torch.rand(T, B, generator=generator) < resets
    return gru, (inputs, draw(B, gru.hidden_size).requires_grad_(), is_first)


def with_grads(gru: BlockGRU, args: Args, seed: int = 1) -> dict[str, Tensor]:
    """The output, and the gradients of everything under random cotangents of all carries and of the last."""
    output, last = gru(*args)
    assert last.shape == output.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (output, last)]
    leaves = {f"input {i}": x for i, x in enumerate(args[0])} | {"hx": args[1]} | dict(gru.named_parameters())
    grads = torch.autograd.grad((output, last), list(leaves.values()), cotangents)
    return {"output": output.detach()} | dict(zip(leaves, grads))


def reference(gru: BlockGRU, args: Args) -> dict[str, Tensor]:
    with fastwm.backend("ref"):
        return with_grads(gru, args)


def make_double(gru: BlockGRU, args: Args, sizes: dict[str, Any]) -> tuple[BlockGRU, Args]:
    """The same numbers in float64."""
    inputs, hx, is_first = args
    copy = BlockGRU(**sizes).double()
    copy.load_state_dict(gru.state_dict())
    return copy, (
        [x.detach().double().requires_grad_() for x in inputs],
        hx.detach().double().requires_grad_(),
        is_first,
    )


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
@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 64), (3, 16), (5, 33), (64, 2), (2, 1024)])
def test_equals_reference(T: int, B: int, resets: float) -> None:
    gru, args = make(T, B, resets=resets)
    assert_all_close(with_grads(gru, args), reference(gru, args), 1e-9 if B == 1024 else 1e-10)


@needs_cpu
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("B", [3, 20, 200])
def test_threads_by_rows_and_by_columns(count: int, B: int) -> None:
    """Few rows of a wide model are split by columns, many by rows; chunks of the weights' gradients end anywhere."""
    gru, args = make(9 if B == 20 else 3, B, WIDE)
    with threads(count):
        ours = with_grads(gru, args)
    assert_all_close(ours, reference(gru, args), 1e-10)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    sizes: dict[str, Any] = dict(input_size=9, hidden_size=96, embed_size=40, blocks=3)
    gru, args = make(6, 21, sizes, dtype)
    exact = reference(*make_double(gru, args, sizes))
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(gru, args)
    finally:
        _lib.host.set_isa(before)
    assert_all_close(ours, exact, {torch.float32: 1e-5, torch.float64: 1e-12}[dtype])


@needs_cpu
@settings(max_examples=25)
@given(
    T=st.integers(1, 6),
    B=st.integers(0, 5),
    blocks=st.integers(1, 4),
    block=st.integers(1, 9),
    embed=st.integers(1, 40),
    inputs=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    update_bias=st.sampled_from([-1.0, 0.0, 2.5]),
    resets=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    T: int, B: int, blocks: int, block: int, embed: int, inputs: list[int], update_bias: float, resets: float, seed: int
) -> None:
    sizes: dict[str, Any] = dict(
        input_size=inputs, hidden_size=blocks * block, embed_size=embed, blocks=blocks, update_bias=update_bias
    )
    gru, args = make(T, B, sizes, resets=resets, seed=seed)
    assert_all_close(with_grads(gru, args), reference(gru, args), 1e-10)


@needs_cpu
def test_any_strides() -> None:
    gru, args = make(4, 3)
    inputs, hx, is_first = (
        [x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for x in args[0]],
        args[1].detach().mT.contiguous().mT.requires_grad_(),
        args[2].mT.contiguous().mT,
    )
    assert not inputs[0].is_contiguous() and not hx.is_contiguous() and not is_first.is_contiguous()
    with torch.no_grad():
        for weight in (gru.embed_carry.linear.weight, gru.gates.weight):
            weight.set_(weight.mT.contiguous().mT)
    assert_all_close(with_grads(gru, (inputs, hx, is_first)), reference(gru, args), 1e-10)


# Meaning


@pytest.fixture(params=["ref", pytest.param("cpu", marks=needs_cpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastwm.backend(request.param):
        yield request.param


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_cells_steps(backend: str, layers: int) -> None:
    """The same state dict, the same numbers as a loop over the cell; a deeper cell works too."""
    gru, (inputs, hx, is_first) = make(5, 3, TINY | dict(layers=layers, update_bias=0.5), torch.float32)
    cell = BlockGRUCell(**TINY, layers=layers, update_bias=0.5)
    cell.load_state_dict(gru.state_dict())
    output, last = gru(inputs, hx, is_first)
    h = hx
    for t in range(5):
        h = cell([x[t] for x in inputs], h, is_first[t])
        assert_close(output[t], h, atol=1e-5, rtol=0)
    assert torch.equal(output[-1], last)


def test_starts_from_zeros_without_resets(backend: str) -> None:
    gru, (inputs, hx, is_first) = make(3, 2)
    assert torch.equal(gru(inputs)[0], gru(inputs, torch.zeros_like(hx), torch.zeros_like(is_first))[0])
    one = BlockGRU(7, 8, embed_size=6, blocks=2).double()
    assert torch.equal(one(inputs[0])[0], one(inputs[:1])[0])


def test_t7_a_reset_forgets_the_past_and_stops_its_gradient(backend: str) -> None:
    gru, (inputs, hx, is_first) = make(4, 2, resets=0.0)
    is_first[2, 0] = True
    output = gru(inputs, hx, is_first)[0]
    fresh = gru([x[2:] for x in inputs])[0]
    assert_close(output[2:, 0], fresh[:, 0], atol=1e-12, rtol=0)
    assert not torch.allclose(output[2:, 1], fresh[:, 1])
    d_input, d_hx = torch.autograd.grad(output[2:].sum(), [inputs[0], hx])
    assert not d_input[:2, 0].any() and not d_hx[0].any()
    assert d_input[:2, 1].abs().min() > 0 and d_hx[1].abs().min() > 0


def test_gradcheck(backend: str) -> None:
    gru, (inputs, hx, is_first) = make(3, 2, dict(input_size=3, hidden_size=4, embed_size=3, blocks=2))
    names = [name for name, _ in gru.named_parameters()]

    def run(x: Tensor, hx: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(gru, dict(zip(names, values)), ([x], hx, is_first))[0]

    assert torch.autograd.gradcheck(run, (inputs[0], hx, *gru.parameters()), fast_mode=True)


# Contracts


@needs_cpu
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # rows of each thread; columns of all
def test_100_repeats_are_bitwise_equal(count: int, dtype: torch.dtype) -> None:
    gru, args = make(4, 16, dict(input_size=5, hidden_size=256, embed_size=64, blocks=8), dtype)
    with threads(count):
        first = with_grads(gru, args)
        for _ in range(100):
            again = with_grads(gru, args)
            assert all(torch.equal(first[name], again[name]) for name in first)


def raw_inputs(gru: BlockGRU, args: Args, requires_grad: bool = False) -> list[Tensor]:
    """The operator's own arguments, up to the scalars."""
    captured: list[Tensor] = []
    module = sys.modules["fastwm.ops.block_gru_scan"]
    forward = module._forward

    class Capture:
        library = forward.library

        def __call__(self, library: str, *inputs: Any) -> Any:
            captured.extend(inputs[:-4])
            return forward(library, *inputs)

    module._forward = Capture()
    try:
        gru(*args)
    finally:
        module._forward = forward
    leaves = [x.detach().clone() for x in captured]
    return [x.requires_grad_(requires_grad and x.is_floating_point()) for x in leaves]


SCALARS = (-1.0, 1e-4)


@needs_cpu
def test_without_gradients_nothing_is_saved() -> None:
    gru, args = make(4, 3)
    want = gru(*args)[0]
    with torch.no_grad():
        got = gru(*args)[0]
    assert torch.equal(got, want) and got.grad_fn is None
    raw = torch.ops.fastwm.block_gru_scan(*raw_inputs(gru, args), *SCALARS, False, False)
    assert all(x.numel() == 0 for x in raw[1:])


@needs_cpu
def test_opcheck() -> None:
    forward, backward = torch.ops.fastwm.block_gru_scan.default, torch.ops.fastwm.block_gru_scan_backward.default
    for T, B, dtype in [(1, 1, torch.float32), (3, 2, torch.float64)]:
        gru, args = make(T, B, dtype=dtype)
        for save in (True, False):
            torch.library.opcheck(forward, (*raw_inputs(gru, args), *SCALARS, save, False))
        torch.library.opcheck(forward, (*raw_inputs(gru, args, requires_grad=True), *SCALARS, True, False))
        _, is_first, h, *weights = inputs = raw_inputs(gru, args)
        output, *saved = forward(*inputs, *SCALARS, True, False)
        needed = [w for i, w in enumerate(weights) if i not in (1, 7)]
        torch.library.opcheck(backward, (output, is_first, h, output, *saved, *needed, 1e-4, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend: str, dynamic: bool) -> None:
    if dynamic and backend == "ref":
        pytest.skip("tracing the loop with symbolic shapes takes long")
    torch._dynamo.reset()
    gru, args = make(3, 2)
    compiled = torch.compile(gru, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for run in (compiled, gru):
        output, last = run(*args)
        loss = output.square().sum() + last.sum()
        results.append([output, *torch.autograd.grad(loss, [*args[0], args[1], *gru.parameters()])])
    assert_close(*results)


@needs_cpu
def test_second_derivative_and_vmap_are_refused() -> None:
    gru, args = make(2, 2)
    with fastwm.backend("cpu"):
        grad = torch.autograd.grad(gru(*args)[0].sum(), args[1], create_graph=True)
        with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
            grad[0].sum().backward()
        with pytest.raises(RuntimeError, match="block_gru_scan takes a batch"):
            torch.func.vmap(lambda hx: gru(args[0], hx, args[2])[0])(torch.zeros(3, 2, 8, dtype=torch.float64))


def wrong(change: Callable[[list[Tensor], list[Any]], None]) -> tuple[BlockGRU, Any]:
    gru, args = make(4, 3)
    rest: list[Any] = list(args[1:])
    change(args[0], rest)
    return gru, (args[0], *rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, rest: x.__setitem__(0, x[0][:0]), "T >= 1"),
        (lambda x, rest: x.__setitem__(0, x[0][0]), r"inputs \[T, B, X\]"),
        (lambda x, rest: x.__setitem__(0, x[0].long()), r"inputs \[T, B, X\]"),
        (lambda x, rest: x.__setitem__(0, x[0][..., :4]), r"input 0 \[4, 3, 7\].*\[4, 3, 4\]"),
        (lambda x, rest: x.__setitem__(1, x[1][:, :1]), r"input 1 \[4, 3, 3\].*\[4, 1, 3\]"),
        (lambda x, rest: x.pop(), "an input for each of 2 embeddings"),
        (lambda x, rest: rest.__setitem__(0, rest[0][:, :4]), "embed_carry"),
        (lambda x, rest: rest.__setitem__(0, rest[0][:, :7]), "2 blocks"),
        (lambda x, rest: rest.__setitem__(0, rest[0][:2]), r"h \[3, 8\].*\[2, 8\]"),
        (lambda x, rest: rest.__setitem__(0, rest[0].float()), "one dtype"),
        (lambda x, rest: rest.__setitem__(0, rest[0].to("meta")), "meta"),
        (lambda x, rest: rest.__setitem__(1, rest[1].float()), "is_first to be bool"),
        (lambda x, rest: rest.__setitem__(1, rest[1][:1]), r"is_first \[4, 3\].*\[1, 3\]"),
    ],
)
def test_wrong_arguments_are_explained(change: Callable[[list[Tensor], list[Any]], None], message: str) -> None:
    gru, args = wrong(change)
    with pytest.raises(ValueError, match=message):
        gru(*args)


@needs_cpu
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    gru, args = make(2, 2)
    inputs = raw_inputs(gru, args)
    for i in range(len(inputs)):
        for bad in (inputs[i][..., :-1], inputs[i].to(torch.float16)):
            with pytest.raises(RuntimeError):
                torch.ops.fastwm.block_gru_scan(*inputs[:i], bad, *inputs[i + 1 :], *SCALARS, True, False)


# bfloat16


@needs_cpu
@pytest.mark.parametrize("outside", [False, True], ids=["float32 outside", "bfloat16 outside"])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (3, 7), (3, 16), (4, 37)])
def test_bfloat16_error_is_within_twice_pytorchs(
    T: int, B: int, outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T48: only products are bfloat16; values and gradients against float64."""
    monkeypatch.setattr(sys.modules["fastwm.ops.linear"], "_NATIVE_BF16", outside)
    sizes: dict[str, Any] = dict(input_size=(9, 4), hidden_size=192, embed_size=40, blocks=3)
    gru, args = make(T, B, sizes, torch.float32)
    exact = reference(*make_double(gru, args, sizes))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = with_grads(gru, args), reference(gru, args)
    for name, truth in exact.items():
        assert ours[name].dtype == torch.float32, name
        error, allowed = (x[name].double().sub(truth).norm() for x in (ours, theirs))
        assert error <= 2 * allowed + 1e-5 * truth.norm() + 1e-6, name
        assert error <= 0.05 * truth.norm() + 1e-4, name


@needs_cpu
def test_bfloat16_inputs_and_autocast() -> None:
    """A bfloat16 input, as a layer under autocast leaves it, beside a float32 carry."""
    gru, (inputs, hx, is_first) = make(3, 2, dtype=torch.float32)
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs]
    want = gru([x.float() for x in rounded], hx, is_first)[0]
    assert_close(gru(rounded, hx, is_first)[0], want)
    with torch.autocast("cpu", torch.bfloat16):
        got = gru(rounded, hx, is_first)[0]
        assert got.dtype == torch.float32
        (grad,) = torch.autograd.grad(got.sum(), rounded[0])
        assert grad.dtype == torch.bfloat16
    assert_close(got, want, atol=0.05, rtol=0)


@needs_cpu
def test_bfloat16_does_not_depend_on_threads_beyond_rounding() -> None:
    gru, args = make(9, 40, dict(input_size=16, hidden_size=512, embed_size=128, blocks=8), torch.float32)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for count in (1, 2, 3):
            with threads(count):
                results.append(with_grads(gru, args))
                assert all(torch.equal(x, results[-1][name]) for name, x in with_grads(gru, args).items())
    for other in results[1:]:
        assert_all_close(other, results[0], 1e-2)


def test_the_operators_own_arguments() -> None:
    """`block_gru_scan` without the module; one tensor is one input."""
    gru, (inputs, hx, is_first) = make(3, 2, dict(input_size=7, hidden_size=8, embed_size=6, blocks=2))
    assert_close(block_gru_scan(inputs[0], hx, gru.params, is_first), gru(inputs, hx, is_first), atol=0, rtol=0)


@needs_cpu
def test_peak_memory_is_not_above_the_loops() -> None:
    peak = peak_memory("""
from fastwm.nn import BlockGRU
gru = BlockGRU(128, 1024, embed_size=128)
def sequence(T, B):
    return gru(torch.randn(T, B, 128), torch.randn(B, 1024))[:1]
""")
    assert peak["cpu"] <= peak["ref"], peak
