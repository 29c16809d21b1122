"""The lambda-return: hand-computed values, every backend against the reference, gradients, contracts."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.ops import _backend, lambda_return
from tests.conftest import INTERPRETED, Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [x.to(device, dtype) for x in draw]


def column(*values: float, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def with_grads(args: list[Tensor], lam: float | Tensor, seed: int = 1) -> list[Tensor]:
    """The return and its three gradients under a random cotangent."""
    leaves = [x.detach().requires_grad_() for x in args]
    ret = lambda_return(*leaves, lam)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.rand(ret.shape, generator=generator, dtype=torch.float64).to(ret)
    return [ret.detach(), *torch.autograd.grad(ret, leaves, cotangent)]


# ------------------------------------------------------------------------------------------- values by hand


def test_g4_dreamerv3_imagined_return(on: Target) -> None:
    reward, cont = column(1, 2, 3, 4, device=on.device), column(0.9, 0.9, 0.5, 0.9, device=on.device)
    ret = lambda_return(reward, cont, column(1, 1.5, 2, 2.5, device=on.device), 0.95)
    assert_close(ret, column(7.21256922, 7.21353125, 6.01875, 6.25, device=on.device), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("cont", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.5], [14.14191684, 5.96130625, 5.72375, 4.25]),
        ([0.99] * 4, [16.47118994, 7.89121737, 7.2482375, 5.475]),
    ],
    ids=["v2", "v1"],
)
def test_g5_dreamerv2_and_v1_targets(on: Target, cont: list[float], expected: list[float]) -> None:
    reward, next_value = column(9, 1, 2, 3, device=on.device), column(1, 1.5, 2, 2.5, device=on.device)
    ret = lambda_return(reward, column(*cont, device=on.device), next_value, 0.95)
    assert_close(ret, column(*expected, device=on.device), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        (1.0, [3.19339339, 2.0, 11.73896600, 11.97297297]),
        (0.0, [9.80351342, 8.97897898, 11.73896600, 11.97297297]),
    ],
    ids=["terminal", "truncated"],
)
def test_g6_dreamerv3_replay_return(on: Target, terminal: float, expected: list[float]) -> None:
    last, term = column(0, 0, 1, 0, 0, device=on.device), column(0, 0, terminal, 0, 0, device=on.device)
    reward, boot = column(0, 1, 2, 0, 3, device=on.device), column(5, 6, 7, 8, 9, device=on.device)
    cont, lam = (1 - term[1:]) * (1 - 1 / 333), (1 - last[1:]) * 0.95
    assert_close(lambda_return(reward[1:], cont, boot[1:], lam), column(*expected, device=on.device), atol=1e-8, rtol=0)


# ------------------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("lam", ["number", "varying"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (4, 3), (15, 37), (3, 2, 5), (6, 700), (4, 0)])
def test_equals_reference(native: Target, shape: tuple[int, ...], lam: str) -> None:
    args = inputs(*shape, device=native.device)
    lams = 0.9 if lam == "number" else inputs(*shape, seed=2)[0].to(native.device)
    ours = with_grads(args, lams)
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(args, lams), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    args = inputs(9, 77, dtype=dtype)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(args, 0.95)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = with_grads([x.double() for x in args], 0.95)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}[dtype]
    assert_close([x.double() for x in ours], exact, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_threads_change_nothing() -> None:
    args = inputs(15, 4099, dtype=torch.float32)  # above the size from which threads share the columns
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = with_grads(args, 0.95)
    torch.set_num_threads(max(threads, 2))
    together = with_grads(args, 0.95)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


def test_bfloat16_error_is_within_twice_pytorchs(native: Target) -> None:
    args = inputs(15, 257, dtype=torch.bfloat16, device=native.device)
    ours = with_grads(args, 0.95)
    with fastwm.backend("ref"):
        pytorch, exact = with_grads(args, 0.95), with_grads([x.double() for x in args], 0.95)
    for x, theirs, truth in zip(ours, pytorch, exact, strict=True):
        assert (x - truth).abs().max() <= 2 * (theirs - truth).abs().max()
        assert (x - truth).norm() <= 0.01 * truth.norm()


@given(
    steps=st.integers(1, 9),
    batch=st.lists(st.integers(0, 5), max_size=2),
    lam=st.sampled_from(["number", "scalar", "steps", "batch", "full"]),
    permuted=st.booleans(),
    step=st.integers(1, 2),
)
def test_any_shape_strides_and_lam(steps: int, batch: list[int], lam: str, permuted: bool, step: int) -> None:
    shape = (steps, *batch)
    args = inputs(*(step * size for size in shape))
    if permuted:  # the same shape, laid out the other way round
        args = [x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in args]
    args = [x[tuple(slice(None, None, step) for _ in shape)] for x in args]
    lam_shape = {"scalar": (), "steps": (steps, *(1 for _ in batch)), "batch": tuple(batch), "full": shape}
    lams = 0.7 if lam == "number" else inputs(*lam_shape[lam], seed=3)[0]
    ours = with_grads(args, lams)
    assert ours[0].is_contiguous()
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(args, lams), atol=1e-12, rtol=1e-12)


def test_repeats_bitwise(on: Target) -> None:
    args = inputs(5, 300, dtype=torch.float32, device=on.device)
    first = with_grads(args, 0.95)
    for _ in range(100 if on.backend != "triton" or on.device == "cuda" else 3):
        assert all(map(torch.equal, first, with_grads(args, 0.95)))


# ----------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, "varying"], ids=str)
def test_gradcheck(on: Target, lam: float | str) -> None:
    args = [x.requires_grad_() for x in inputs(4, 3, device=on.device)]
    lams = inputs(4, 3, seed=2, device=on.device)[0] if isinstance(lam, str) else lam
    assert torch.autograd.gradcheck(lambda r, c, v: lambda_return(r, c, v, lams), args)


def test_reference_is_differentiable_twice() -> None:
    args = [x.requires_grad_() for x in inputs(3, 2)]
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(lambda_return, args)


def test_second_derivative_is_refused(native: Target) -> None:
    args = [x.requires_grad_() for x in inputs(3, 2, device=native.device)]
    grads = torch.autograd.grad(lambda_return(*args).sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        grads[1].sum().backward()


def test_only_what_needs_a_gradient_gets_one(native: Target) -> None:
    reward, cont, next_value = inputs(4, 3, device=native.device)
    next_value.requires_grad_()
    lambda_return(reward, cont, next_value).sum().backward()
    assert next_value.grad is not None
    assert reward.grad is None
    with torch.no_grad():
        assert lambda_return(reward, cont, next_value).grad_fn is None


# ------------------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lam", ["number", "varying"])
def test_opcheck(native: Target, dtype: torch.dtype, lam: str) -> None:
    library = getattr(torch.ops, native.library)
    for shape in [(1, 1), (4, 3), (2, 3, 2)]:
        r, c, v = inputs(*shape, dtype=dtype, device=native.device)
        tail = (None, 0.95) if lam == "number" else (inputs(*shape, dtype=dtype, device=native.device, seed=2)[0], 0.0)
        torch.library.opcheck(library.lambda_return.default, (r, c, v, *tail))
        leaves = [x.clone().requires_grad_() for x in (r, c, v)]
        torch.library.opcheck(library.lambda_return.default, (*leaves, *tail))
        torch.library.opcheck(library.lambda_return.default, (leaves[0], c.mT.contiguous().mT, v, *tail))
        ret = lambda_return(r, c, v)
        torch.library.opcheck(library.lambda_return_backward.default, (r, c, v, ret, *tail))


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for name in ("lambda_return", "lambda_return_backward"):
        ours, theirs = (getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton"))
        assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


def test_compiles_whole_with_dynamic_shapes(on: Target) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda r, c, v: 2 * lambda_return(r, c, v, 0.9), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in [(4, 3), (4, 5), (6, 5)] if on.backend != "ref" else [(4, 3)]:
        args = [x.requires_grad_() for x in inputs(*shape, device=on.device)]
        got, want = compiled(*args), 2 * lambda_return(*args, 0.9)
        assert_close(got, want)
        grads = (torch.autograd.grad(x.square().sum(), args) for x in (got, want))
        assert_close(*grads)


def test_backend_can_change_around_and_inside_a_compiled_function() -> None:
    torch._dynamo.reset()
    args = inputs(4, 3)

    def inside(r: Tensor, c: Tensor, v: Tensor) -> Tensor:
        with fastwm.backend("ref"):
            return lambda_return(r, c, v)

    want = lambda_return(*args)
    graphs: list[bool] = []  # whether each that was compiled calls an operator of ours

    def watch(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append("fastwm" in graph.code)
        return graph.forward

    ours = _backend.select(args[0]) is not None
    assert_close(torch.compile(inside, fullgraph=True, backend=watch)(*args), want)
    compiled = torch.compile(lambda_return, fullgraph=True, backend=watch)
    for _ in range(2):
        assert_close(compiled(*args), want)
        with fastwm.backend("ref"):
            assert_close(compiled(*args), want)
    assert graphs == [False, ours, False] if ours else not any(graphs)


def test_vmap_and_functional_gradients(native: Target) -> None:
    args = inputs(5, 4, 3, device=native.device)  # [N, T, B]
    mapped = torch.vmap(lambda_return)(*args)
    assert_close(mapped, torch.stack([lambda_return(*x) for x in zip(*args, strict=True)]))
    one = torch.vmap(lambda_return, in_dims=(2, None, None))(args[0].permute(1, 2, 0), args[1][0], args[2][0])
    assert_close(one, torch.stack([lambda_return(x, args[1][0], args[2][0]) for x in args[0]]))
    per_sample = torch.vmap(torch.func.grad(lambda r, c, v: lambda_return(r, c, v).sum(), (0, 1, 2)))(*args)
    leaves = [x.requires_grad_() for x in args]
    whole = torch.autograd.grad(torch.vmap(lambda_return)(*leaves).sum(), leaves)
    assert_close(per_sample, whole)


def test_autocast_computes_in_float32(on: Target) -> None:
    args = inputs(4, 3, dtype=torch.bfloat16, device=on.device)
    with torch.autocast(on.device, torch.bfloat16):
        assert lambda_return(*args).dtype == torch.float32


def test_float16_is_served_by_the_reference() -> None:
    assert lambda_return(*inputs(4, 3, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, c, v: (r[:0], c[:0], v[:0]), r"T >= 1.*\[0, 3\]"),
        (lambda r, c, v: (r.sum(), c.sum(), v.sum()), "T >= 1"),
        (lambda r, c, v: (r, c[:3], v), r"reward \[4, 3\].*cont \[3, 3\]"),
        (lambda r, c, v: (r, c, v.float()), r"torch.float64.*next_value.*torch.float32"),
        (lambda r, c, v: (r, c.to("meta"), v), "cont.*meta"),
        (lambda r, c, v: (r.long(), c.long(), v.long()), "torch.int64"),
        (lambda r, c, v: (r, c, v, v.clone().requires_grad_()), "lam requires grad"),
        (lambda r, c, v: (r, c, v, v[:2]), r"lam \[2, 3\].*\[4, 3\]"),
        (lambda r, c, v: (r, c, v, v.to("meta")), "lam is on meta"),
    ],
)
def test_wrong_arguments_are_explained(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        lambda_return(*change(*inputs(4, 3)))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    r, c, v = inputs(4, 3)
    for bad in [(r, c[:2], v), (r, c, v.float()), (r[:0], c[:0], v[:0]), (r.half(), c.half(), v.half())]:
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.lambda_return(*bad, None, 0.95)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    args = inputs(15, 64, dtype=torch.float32, device="cuda")
    lambda_return(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ret = lambda_return(*args)
    args[0].add_(1)
    graph.replay()
    assert_close(ret, lambda_return(*args))


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
