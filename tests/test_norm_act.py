"""Norms with an activation: every backend against the reference, gradients, determinism, contracts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm import _lib, ops
from tests.conftest import INTERPRETED, Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# name -> whether it takes a bias, and the same from torch's own parts
NORMS: dict[str, tuple[bool, Callable[..., Tensor]]] = {
    "rms_norm": (False, lambda x, w, eps: F.rms_norm(x, w.shape, w, eps)),
    "rms_norm_silu": (False, lambda x, w, eps: F.silu(F.rms_norm(x, w.shape, w, eps))),
    "layer_norm_silu": (True, lambda x, w, b, eps: F.silu(F.layer_norm(x, w.shape, w, b, eps))),
    "layer_norm_elu": (True, lambda x, w, b, eps: F.elu(F.layer_norm(x, w.shape, w, b, eps))),
}
norms = pytest.mark.parametrize("name", NORMS)


def inputs(name: str, *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> list:
    """x [*shape], weight, and for LayerNorm bias [D]; the affine parameters in the type computed in."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    affine = [torch.randn(shape[-1], generator=generator, dtype=torch.float64) for _ in range(1 + NORMS[name][0])]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(device, dtype), *(a.to(device, wide) for a in affine)]


def with_grads(name: str, args: list[Tensor], seed: int = 1, **options: float) -> list[Tensor]:
    """The output and the gradients of all arguments under a random cotangent."""
    leaves = [x.detach().requires_grad_() for x in args]
    y = getattr(ops, name)(*leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y)  # the same in any dtype
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


# -------------------------------------------------------------------------------------- against the reference


@norms
def test_reference_is_made_of_torchs_norms(name: str) -> None:
    args = inputs(name, 5, 7)
    with fastwm.backend("ref"):
        assert_close(getattr(ops, name)(*args, eps=0.3), NORMS[name][1](*args, 0.3))


def test_values_by_hand(on: Target) -> None:
    x, ones = torch.tensor([3.0, 4.0], device=on.device), torch.ones(2, device=on.device)
    rms = torch.tensor([3.0, 4.0]) / (12.5 + 0.5) ** 0.5
    assert_close(ops.rms_norm(x, ones, eps=0.5).cpu(), rms)
    assert_close(ops.rms_norm_silu(x, ones, eps=0.5).cpu(), rms * torch.sigmoid(rms))
    layer = torch.tensor([-0.5, 0.5]) / (0.25 + 0.5) ** 0.5 + 1
    assert_close(ops.layer_norm_silu(x, ones, ones, eps=0.5).cpu(), layer * torch.sigmoid(layer))
    assert_close(ops.layer_norm_elu(x, ones, -3 * ones, eps=0.5).cpu(), torch.exp(layer - 4) - 1)


@norms
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 5), (2, 3, 31), (70, 4), (33, 32), (3, 300), (0, 4), (130, 17)])
def test_equals_reference(native: Target, shape: tuple[int, ...], name: str) -> None:
    args = inputs(name, *shape, device=native.device)
    ours = with_grads(name, args)
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(name, args), atol=1e-10, rtol=1e-10)


@norms
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(75, 13), (9, 301)], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype, name: str, shape: tuple[int, int]) -> None:
    assert _lib.host is not None
    args = inputs(name, *shape, dtype=dtype)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(name, args)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = with_grads(name, [x.double() for x in args])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2}[dtype]
    for x, truth in zip(ours, exact, strict=True):
        assert (x - truth).abs().max() <= tolerance * truth.abs().max()


@norms
def test_bfloat16_error_is_within_twice_pytorchs(native: Target, name: str) -> None:
    args = inputs(name, 15, 257, dtype=torch.bfloat16, device=native.device)
    ours = with_grads(name, args)
    with fastwm.backend("ref"):
        pytorch, exact = with_grads(name, args), with_grads(name, [x.double() for x in args])
    for x, theirs, truth in zip(ours, pytorch, exact, strict=True):
        assert x.dtype == theirs.dtype
        if native == Target("triton", "cpu"):  # the interpreter truncates to bfloat16: a whole unit in the last place
            assert ((x - truth).abs() <= 2**-7 * truth.abs() + 1e-6 * truth.abs().max()).all()
        else:
            assert (x - truth).abs().max() <= 2 * (theirs - truth).abs().max()
        assert (x - truth).norm() <= 0.01 * truth.norm()


@given(
    name=st.sampled_from(list(NORMS)),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    empty=st.booleans(),
    permuted=st.booleans(),
    step=st.integers(1, 2),
)
def test_any_shape_and_strides(name: str, shape: list[int], empty: bool, permuted: bool, step: int) -> None:
    if empty and len(shape) > 1:
        shape[0] = 0
    args = inputs(name, *(step * size for size in shape))
    if permuted:  # the same shape, laid out the other way round
        args = [x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in args]
    args = [x[tuple(slice(None, None, step) for _ in x.shape)] for x in args]
    ours = with_grads(name, args)
    assert ours[0].is_contiguous()
    with fastwm.backend("ref"):
        assert_close(ours, with_grads(name, args), atol=1e-11, rtol=1e-11)


def test_large_and_small_rows_stay_finite(native: Target) -> None:
    x = torch.tensor([[1e15, -1e15, 0, 0], [1e-30, 0, 0, 0], [0, 0, 0, 0]], device=native.device)
    for name, (bias, _) in NORMS.items():
        args = [x, torch.ones(4, device=native.device), *([torch.zeros(4, device=native.device)] if bias else [])]
        assert all(bool(y.isfinite().all()) for y in with_grads(name, args))


def test_layer_norm_survives_a_large_mean(native: Target) -> None:
    """The variance by squares less the squared mean would be lost to rounding here."""
    x, w, b = inputs("layer_norm_silu", 4, 96, dtype=torch.float32, device=native.device)
    x = (1024 * x).round() / 1024 + 4096  # exact in float32
    exact = F.silu(F.layer_norm(x.double(), w.shape, w.double(), b.double(), 1e-3))
    assert_close(ops.layer_norm_silu(x, w, b).double(), exact, atol=2e-3, rtol=2e-3)


# ----------------------------------------------------------------------------------------------- determinism


def test_repeats_bitwise(on: Target) -> None:
    args = inputs("layer_norm_silu", 300, 40, dtype=torch.float32, device=on.device)
    first = with_grads("layer_norm_silu", args)
    for _ in range(50 if on.backend != "triton" or on.device == "cuda" else 2):
        assert all(map(torch.equal, first, with_grads("layer_norm_silu", args)))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(4099, 9), (301, 257)], ids=str)
def test_threads_change_nothing(shape: tuple[int, int]) -> None:
    args = inputs("layer_norm_elu", *shape, dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(with_grads("layer_norm_elu", args))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# ------------------------------------------------------------------------------------------------ gradients


@norms
@pytest.mark.parametrize("width", [1, 3, 40])
def test_gradcheck(on: Target, name: str, width: int) -> None:
    if on.backend == "triton" and width > 3:
        pytest.skip("slow when interpreted")
    args = [x.requires_grad_() for x in inputs(name, 2, width, device=on.device)]
    assert torch.autograd.gradcheck(lambda *a: getattr(ops, name)(*a, eps=0.1), args)


def test_reference_is_differentiable_twice() -> None:
    args = [x.requires_grad_() for x in inputs("layer_norm_silu", 2, 3)]
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(ops.layer_norm_silu, args)


def test_second_derivative_is_refused(native: Target) -> None:
    args = [x.requires_grad_() for x in inputs("rms_norm_silu", 3, 2, device=native.device)]
    grads = torch.autograd.grad(ops.rms_norm_silu(*args).sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        grads[0].sum().backward()


def test_only_what_needs_a_gradient_gets_one(native: Target) -> None:
    x, w, b = inputs("layer_norm_silu", 3, 4, device=native.device)
    b.requires_grad_()
    ops.layer_norm_silu(x, w, b).sum().backward()
    assert b.grad is not None
    assert x.grad is None
    with torch.no_grad():
        assert ops.layer_norm_silu(x, w, b).grad_fn is None


# ------------------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rms_norm_silu", "layer_norm_elu"])
def test_opcheck(native: Target, dtype: torch.dtype, name: str) -> None:
    library = getattr(torch.ops, native.library)
    for shape in [(1, 1), (4, 3), (2, 3, 2)]:
        x, w, *rest = inputs(name, *shape, dtype=dtype, device=native.device)
        b, activation = (rest[0], 2) if rest else (None, 1)
        torch.library.opcheck(library.norm_act.default, (x, w, b, 1e-3, activation))
        leaves = [None if a is None else a.clone().requires_grad_() for a in (x, w, b)]
        torch.library.opcheck(library.norm_act.default, (*leaves, 1e-3, activation))
        _, stats = library.norm_act(x, w, b, 1e-3, activation)
        strided = torch.randn_like(x).mT.contiguous().mT
        torch.library.opcheck(library.norm_act_backward.default, (strided, x, w, b, stats, activation))


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for name in ("norm_act", "norm_act_backward"):
        ours, theirs = (getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton"))
        assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


@norms
def test_compiles_whole_with_dynamic_shapes(on: Target, name: str) -> None:
    torch._dynamo.reset()
    fn = getattr(ops, name)
    compiled = torch.compile(lambda *a: 2 * fn(*a), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, 3), (4, 5), (6, 5)] if on.backend != "ref" else [(4, 3)]:
        args = [x.requires_grad_() for x in inputs(name, *shape, device=on.device)]
        got, want = compiled(*args), 2 * fn(*args)
        assert_close(got, want)
        assert_close(*(torch.autograd.grad(x.square().sum(), args) for x in (got, want)))


def test_vmap_and_functional_gradients(native: Target) -> None:
    x, w, b = inputs("layer_norm_silu", 5, 4, 3, device=native.device)
    assert_close(torch.vmap(ops.layer_norm_silu, in_dims=(1, None, None), out_dims=1)(x, w, b), fastwm_rows(x, w, b))
    models = torch.stack([w, 2 * w]), torch.stack([b, -b])
    mapped = torch.vmap(ops.layer_norm_silu, in_dims=(None, 0, 0))(x, *models)
    assert_close(mapped, torch.stack([ops.layer_norm_silu(x, w, b), ops.layer_norm_silu(x, 2 * w, -b)]))

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return ops.rms_norm_silu(x, w).sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    assert_close(per_sample, torch.stack([torch.func.grad(loss)(w, row) for row in x]))


def fastwm_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.stack([ops.layer_norm_silu(row, w, b) for row in rows]) for rows in x])


def test_autocast_keeps_the_dtype_and_computes_in_float32(on: Target) -> None:
    x, w = inputs("rms_norm_silu", 4, 300, dtype=torch.bfloat16, device=on.device)
    with torch.autocast(on.device, torch.bfloat16):
        y = ops.rms_norm_silu(x, w)
    assert y.dtype == torch.bfloat16
    assert_close(y, F.silu(F.rms_norm(x.float(), w.shape, w, 1e-4)).bfloat16(), rtol=1e-2, atol=1e-2)


def test_float16_is_served_by_the_reference() -> None:
    assert ops.rms_norm_silu(*inputs("rms_norm_silu", 4, 3, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x.sum(), w, b), r"D >= 1, got \[\]"),
        (lambda x, w, b: (x[:, :0], w[:0], b[:0]), r"D >= 1, got \[4, 0\]"),
        (lambda x, w, b: (x.long(), w, b), "torch.int64"),
        (lambda x, w, b: (x, w[:2], b), r"weight \[3\].*\[2\]"),
        (lambda x, w, b: (x, w, b[None]), r"bias \[3\].*\[1, 3\]"),
        (lambda x, w, b: (x, w.to("meta"), b), "weight.*on cpu.*meta"),
        (lambda x, w, b: (x, w, b.long()), "bias.*torch.int64"),
    ],
)
def test_wrong_arguments_are_explained(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        ops.layer_norm_silu(*change(*inputs("layer_norm_silu", 4, 3)))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    x, w, b = inputs("layer_norm_silu", 4, 3)
    for bad in [(x, w[:2], b), (x, w, b[:2]), (x.float(), w, b), (x.sum(), w, b), (x[:, :0], w[:0], b[:0])]:
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.norm_act(*bad, 1e-3, 1)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    args = inputs("layer_norm_silu", 15, 64, dtype=torch.float32, device="cuda")
    with_grads("layer_norm_silu", args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.layer_norm_silu(*args)
    args[0].add_(1)
    graph.replay()
    assert_close(y, ops.layer_norm_silu(*args))


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
