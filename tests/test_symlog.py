"""symlog and symexp: golden numbers G1, every backend against the reference, gradients, contracts."""

import os
import subprocess
import sys

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
functions = pytest.mark.parametrize("name", ["symlog", "symexp"])
inf, nan = float("inf"), float("nan")


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Of all magnitudes from 1e-6 to 10, both signs, and a zero."""
    generator = torch.Generator().manual_seed(0)
    x = 10 ** (7 * torch.rand(shape, generator=generator, dtype=torch.float64) - 6)
    x *= torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
    x.flatten()[:1] = 0
    return x.to(device, dtype)


def with_grad(name: str, x: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    y = getattr(ops, name)(leaf)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y)
    return [y.detach(), *torch.autograd.grad(y, leaf, cotangent)]


def test_g1_values(on: Target) -> None:
    x = torch.tensor([100.0, -100.0, 0.0, 2.0, -2.0], dtype=torch.float64, device=on.device)
    assert_close(ops.symlog(x)[:3].tolist(), [4.615120516841259, -4.615120516841259, 0.0])
    assert_close(ops.symexp(x)[3:].tolist(), [6.38905609893065, -6.38905609893065])
    assert_close(ops.symexp(ops.symlog(x)), x, rtol=1e-12, atol=0)


def test_infinities_nan_and_the_smallest_numbers(on: Target) -> None:
    x = torch.tensor([inf, -inf, nan, 1e-30, -1e-8], device=on.device)
    assert_close(ops.symlog(x), x, equal_nan=True)
    assert_close(ops.symexp(x), x, equal_nan=True)


@functions
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 1, 700), (0, 3)], ids=str)
def test_equals_reference(native: Target, name: str, shape: tuple[int, ...]) -> None:
    x = inputs(*shape, device=native.device)
    ours = with_grad(name, x)
    with fastwm.backend("ref"):
        assert_close(ours, with_grad(name, x), atol=1e-10, rtol=1e-10)


@functions
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype, name: str) -> None:
    assert _lib.host is not None
    x = inputs(2077, dtype=dtype)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grad(name, x)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = with_grad(name, x.double())
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 1.2e-2}[dtype]
    assert_close([y.double() for y in ours], exact, atol=0, rtol=tolerance)


@given(
    name=st.sampled_from(["symlog", "symexp"]),
    shape=st.lists(st.integers(0, 5), max_size=3),
    permuted=st.booleans(),
    step=st.integers(1, 2),
)
def test_any_shape_and_strides(name: str, shape: list[int], permuted: bool, step: int) -> None:
    x = inputs(*(step * size for size in shape))
    if permuted:
        back = [*reversed(range(x.dim()))]
        x = x.permute(back).contiguous().permute(back)
    x = x[tuple(slice(None, None, step) for _ in shape)]
    ours = with_grad(name, x)
    assert ours[0].is_contiguous()
    with fastwm.backend("ref"):
        assert_close(ours, with_grad(name, x), atol=1e-12, rtol=1e-12)


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
@functions
def test_threads_change_nothing_and_repeats_are_bitwise(name: str) -> None:
    x = inputs(70_001, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(with_grad(name, x))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@functions
def test_gradcheck(on: Target, name: str) -> None:
    x = torch.tensor([-3.0, -0.2, 0.1, 2.0], dtype=torch.float64, device=on.device, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(ops, name), x)


@functions
def test_derivative_at_zero_is_one(on: Target, name: str) -> None:
    x = torch.zeros(3, device=on.device, requires_grad=True)
    getattr(ops, name)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]


@functions
def test_derivatives_of_higher_order(native: Target, name: str) -> None:
    x = torch.tensor([-3.0, 0.5], dtype=torch.float64, device=native.device, requires_grad=True)
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(getattr(ops, name), x)
    (grad,) = torch.autograd.grad(getattr(ops, name)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        grad.sum().backward()


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(native: Target, name: str, dtype: torch.dtype) -> None:
    library = getattr(torch.ops, native.library)
    x = inputs(3, 4, dtype=dtype, device=native.device)
    torch.library.opcheck(getattr(library, name).default, (x,))
    torch.library.opcheck(getattr(library, name).default, (x.mT.clone().mT.requires_grad_(),))
    torch.library.opcheck(getattr(library, f"{name}_backward").default, (x, x))


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for name in ("symlog", "symexp", "symlog_backward", "symexp_backward"):
        ours, theirs = (getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton"))
        assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


@functions
def test_compiles_whole_with_dynamic_shapes(on: Target, name: str) -> None:
    torch._dynamo.reset()
    fn = getattr(ops, name)
    compiled = torch.compile(lambda x: 2 * fn(x), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, 3), (6, 5)]:
        x = inputs(*shape, device=on.device).requires_grad_()
        got, want = compiled(x), 2 * fn(x)
        assert_close(got, want)
        assert_close(*(torch.autograd.grad(y.sum(), x) for y in (got, want)))


@functions
def test_vmap_and_functional_gradients(native: Target, name: str) -> None:
    x, fn = inputs(4, 3, device=native.device), getattr(ops, name)
    assert_close(torch.vmap(fn, in_dims=1, out_dims=1)(x), fn(x))
    grad = torch.func.grad(lambda row: fn(row).sum())
    assert_close(torch.vmap(grad)(x), grad(x))


@functions
def test_autocast_computes_in_float32(on: Target, name: str) -> None:
    x = inputs(4, dtype=torch.bfloat16, device=on.device)
    with torch.autocast(on.device, torch.bfloat16):
        assert getattr(ops, name)(x).dtype == torch.float32
    assert getattr(ops, name)(x).dtype == torch.bfloat16


@functions
def test_other_dtypes(name: str) -> None:
    assert getattr(ops, name)(inputs(3, dtype=torch.float16)).dtype == torch.float16
    with pytest.raises(ValueError, match="torch.int64"):
        getattr(ops, name)(torch.ones(3, dtype=torch.int64))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    x = inputs(4)
    for bad in [(x[:2], x), (x.float(), x), (x.half(), x.half())]:
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.symlog_backward(*bad)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    x = inputs(64, dtype=torch.float32, device="cuda")
    ops.symlog(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.symlog(x)
    x.add_(1)
    graph.replay()
    assert_close(y, ops.symlog(x))


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
