"""The linear layer over many rows: against torch.nn.functional.linear, values and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm import _lib
from fastwm.ops.linear import _ROWS, linear

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(not _lib.has_cpu, reason="not built"),
]

Args = tuple[Tensor, Tensor, Tensor | None]


def make(
    rows: int = 300, K: int = 70, N: int = 96, G: int | None = None, bias: bool = True, dtype: Any = torch.float64
) -> Args:
    torch.manual_seed(0)
    weight = torch.randn(N, K) if G is None else torch.randn(G, K, N // G)
    tensors = torch.randn(rows, K), weight / 3, torch.randn(N) if bias else None
    x, weight, b = (None if t is None else t.to(dtype).requires_grad_() for t in tensors)
    assert x is not None and weight is not None
    return x, weight, b


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.T if weight.dim() == 2 else torch.einsum("...k,gkj->...gj", x, weight).flatten(-2)
    return y if bias is None else y + bias


def with_grads(y: Tensor, args: Args) -> list[Tensor]:
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return [y, *torch.autograd.grad(y, [arg for arg in args if arg is not None], weight)]


SHAPES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"rows": _ROWS, "K": 1, "N": 1},
    {"rows": 1100, "K": 64, "N": 33},
    {"rows": 577, "K": 300, "N": 640},
    {"K": 33, "N": 90, "G": 3},
    {"rows": 520, "K": 64, "N": 256, "G": 4, "bias": False},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: dict[str, Any]) -> None:
    args = make(**shape)
    y = linear(*args)
    assert "linear" in type(y.grad_fn.next_functions[0][0]).__name__  # behind the view: the operator, not torch's
    assert_close(with_grads(y, args), with_grads(plain(*args), args), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("rows", [0, 1, _ROWS - 1])
@pytest.mark.parametrize("G", [None, 3])
def test_few_rows_are_torchs(rows: int, G: int | None) -> None:
    args = make(rows, G=G)
    assert_close(with_grads(linear(*args), args), with_grads(plain(*args), args), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("G", [None, 3])
def test_every_instruction_set(isa: str, G: int | None) -> None:
    assert _lib.host is not None
    args, exact = make(G=G, dtype=torch.float32), make(G=G)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(linear(*args), args)
    finally:
        _lib.host.set_isa(before)
    for x, truth in zip(ours, with_grads(plain(*exact), exact)):
        assert (x - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("G", [None, 3])
def test_any_strides(G: int | None) -> None:
    x, weight, bias = make(G=G)
    wide = torch.cat([x, x], -1).view(10, 30, -1)[..., : x.shape[1]]
    turned = weight.transpose(-1, -2).contiguous().transpose(-1, -2)
    args = (wide.detach().requires_grad_(), turned.detach().requires_grad_(), bias)
    assert_close(with_grads(linear(*args), args), with_grads(plain(*args), args), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("G", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_and_repeats_change_nothing(G: int | None, dtype: torch.dtype) -> None:
    threads, results = torch.get_num_threads(), []
    args = make(1300, 130, 150, G=G, dtype=dtype)
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(with_grads(linear(*args), args))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, weight, bias = make()
    assert bias is not None
    g = torch.randn(300, 96).double()
    alone = [linear(*(t.detach() if i != k else t for i, t in enumerate((x, weight, bias)))) for k in range(3)]
    grads = [torch.autograd.grad(y, t, g)[0] for y, t in zip(alone, (x, weight, bias))]
    assert all(map(torch.equal, grads, torch.autograd.grad(linear(x, weight, bias), (x, weight, bias), g)))
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad


@pytest.mark.parametrize("shape", SHAPES[3:], ids=str)
def test_bfloat16_is_as_near_as_torchs(shape: dict[str, Any]) -> None:
    exact, args = make(**shape), make(**shape, dtype=torch.float32)
    ours = with_grads(linear(*args, bf16=True), args)
    with torch.autocast("cpu", torch.bfloat16):
        y = plain(*args).float()
    for x, theirs, truth in zip(ours, with_grads(y, args), with_grads(plain(*exact), exact)):
        assert x.dtype == torch.float32
        assert (x - truth).norm() <= 2 * (theirs - truth).norm() + 1e-6 * truth.norm()
        assert (x - truth).norm() <= 0.01 * truth.norm()


def test_opcheck_and_compile() -> None:
    for G in (None, 3):
        x, weight, bias = make(G=G)
        torch._dynamo.reset()
        compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x, weight, bias), plain(x, weight, bias))
        torch.library.opcheck(torch.ops.fastwm.linear.default, (x, weight, bias, False))
        backward = torch.randn(300, 96).double(), x.detach(), weight.detach(), True, True, False
        torch.library.opcheck(torch.ops.fastwm.linear_backward.default, backward)


def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    x, weight, bias = (t.detach() for t in make() if t is not None)
    for bad in ((x[:, 1:], weight, bias), (x, weight[:, 1:], bias), (x, weight, bias[1:]), (x, weight.float(), bias),
                (x[0], weight, bias), (x.bfloat16(), weight.bfloat16(), bias), (x, weight[0], bias)):  # fmt: skip
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.linear(*bad, False)
    with pytest.raises(RuntimeError, match="g_y"):
        torch.ops.fastwm.linear_backward(torch.randn(300, 95).double(), x, weight, True, True, False)


def test_vmap_and_functional_transforms() -> None:
    x, weight, bias = make()
    stack = torch.stack([x, 2 * x]).detach()
    assert_close(torch.vmap(lambda z: linear(z, weight, bias))(stack), plain(stack, weight, bias))
