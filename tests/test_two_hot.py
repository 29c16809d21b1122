"""The two-hot loss and mean: golden numbers G2, G3, traps T24 to T26, every backend, gradients, contracts."""

import math
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
from fastwm import _lib
from fastwm.nn.functional import symexp_bins
from fastwm.ops import symexp, two_hot_loss, two_hot_mean
from tests.conftest import INTERPRETED, Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# A program of Triton's takes one row; its interpreter takes seconds for 130.
BATCHES = [(), (1,), (4, 3), (0, 3), (9,) if INTERPRETED else (130,)]


def inputs(
    *batch: int, bins: int = 9, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [*batch, K], target, second target [*batch] (some beyond the bins), bins [K]."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    edges = 3 * torch.linspace(-1, 1, bins, dtype=torch.float64) ** 3
    logits = 2 * torch.randn(*batch, bins, generator=generator, dtype=torch.float64)
    targets = [2 * torch.randn(batch, generator=generator, dtype=torch.float64).float() for _ in range(2)]
    return logits.to(device, dtype), *(y.to(device, wide) for y in targets), edges.to(device, wide)


def loss_with_grad(logits: Tensor, *args: Tensor | float | None, seed: int = 1) -> list[Tensor]:
    return with_grad(lambda x: two_hot_loss(x, *args), logits, seed)  # type: ignore[arg-type]


def with_grad(fn, logits: Tensor, seed: int = 1) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """A function's value and gradient under a random cotangent."""
    leaf = logits.detach().requires_grad_()
    y = fn(leaf)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y)
    return [y.detach(), *torch.autograd.grad(y, leaf, cotangent)]


# ------------------------------------------------------------------------------------------ golden and traps


@pytest.mark.parametrize(
    ("value", "low", "w_low"),
    [
        (0.0, 127, 1.0),
        (0.1, 127, 0.41368821),
        (1.0, 131, 0.61732908),
        (-1.0, 122, 0.38267092),
        (10.0, 142, 0.78696302),
        (1000.0, 170, 0.13844850),
        (1e9, 254, 1.0),
        (-1e9, 0, 1.0),
        (math.inf, 254, 1.0),
        (-math.inf, 0, 1.0),
    ],
)
def test_g2_g3_t24_t26_encoding(on: Target, value: float, low: int, w_low: float) -> None:
    """The gradient at uniform logits shows the encoding: softmax less two-hot."""
    half = symexp(torch.linspace(-20, 0, 128, dtype=torch.float64, device=on.device))
    bins = torch.cat([half, -half[:-1].flip(0)])
    target = torch.tensor(value, dtype=torch.float64, device=on.device)
    logits = torch.zeros(255, dtype=torch.float64, device=on.device, requires_grad=True)
    loss = two_hot_loss(logits, target, bins)
    assert_close(loss.item(), 5.54126355, atol=1e-8, rtol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    expected = torch.zeros(255, dtype=torch.float64)
    expected[low] = w_low
    if w_low < 1:
        expected[low + 1] = 1 - w_low
    encoding = 1 / 255 - grad.cpu()
    assert_close(encoding, expected, atol=1e-8, rtol=0)
    assert encoding.sum().item() == pytest.approx(1, abs=1e-12)


def test_t25_uniform_logits_predict_exactly_zero(on: Target) -> None:
    bins = symexp_bins().to(on.device)
    for dtype in (torch.float32, torch.bfloat16):
        for value in (0.0, 1.7, -30.0):
            logits = torch.full((3, 255), value, dtype=dtype, device=on.device)
            assert two_hot_mean(logits, bins).tolist() == [0.0] * 3


def test_symmetric_logits_predict_exactly_zero(on: Target) -> None:
    """Not only uniform ones, whose weights are all 1: products of other weights round, and fused ones do not."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(20, 127, generator=generator)
    logits = torch.cat([half, torch.randn(20, 1, generator=generator), half.flip(-1)], -1).to(on.device)
    assert two_hot_mean(logits, symexp_bins().to(on.device)).tolist() == [0.0] * 20


def test_t26_target_on_a_bin_whose_neighbour_is_ruled_out(native: Target) -> None:
    logits, bins = torch.zeros(5, device=native.device), torch.arange(5.0, device=native.device)
    logits[3] = -math.inf
    loss, grad = loss_with_grad(logits, bins[2], bins)
    assert_close(loss.item(), math.log(4))
    assert grad.isfinite().all()


def test_nan_and_infinite_targets(on: Target) -> None:
    """A NaN target pulls nowhere: loss and gradient of its row are NaN. Infinite ones count as the outermost bins."""
    bins = torch.tensor([-2.0, -1, 0, 1, 2], device=on.device)
    x = torch.linspace(-1, 1, 20, device=on.device).view(4, 5).requires_grad_()
    target = torch.tensor([math.nan, math.inf, -math.inf, 0.5], device=on.device)
    finite = torch.tensor([0.0, 2, -2, 0.5], device=on.device)
    for targets, wanted in (((target,), (finite,)), ((finite, target), (finite, finite))):
        loss, want = two_hot_loss(x, targets[0], bins, *targets[1:]), two_hot_loss(x, wanted[0], bins, *wanted[1:])
        (grad,), (exact,) = torch.autograd.grad(loss.sum(), x), torch.autograd.grad(want.sum(), x)
        assert loss[0].isnan() and grad[0].isnan().all()
        assert torch.equal(loss[1:], want[1:]) and torch.equal(grad[1:], exact[1:])


def test_decodes_what_it_encodes(on: Target) -> None:
    bins = symexp_bins().double().to(on.device)
    for value in (-1e6, -3.0, 0.0, 0.02, 17.0, 4.8e8):
        target = torch.tensor(value, dtype=torch.float64, device=on.device)
        leaf = torch.zeros(255, dtype=torch.float64, device=on.device, requires_grad=True)
        (grad,) = torch.autograd.grad(two_hot_loss(leaf, target, bins), leaf)
        assert_close(((1 / 255 - grad) * bins).sum().item(), value, rtol=1e-9, atol=1e-6)


# ------------------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("second", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("bins", [1, 3, 33])
def test_loss_equals_reference(native: Target, bins: int, batch: tuple[int, ...], second: bool) -> None:
    logits, target, target2, edges = inputs(*batch, bins=bins, device=native.device)
    tail = (target2, 0.7) if second else ()
    ours = loss_with_grad(logits, target, edges, *tail)
    with fastwm.backend("ref"):
        assert_close(ours, loss_with_grad(logits, target, edges, *tail), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("bins", [1, 3, 33])
def test_mean_equals_reference(native: Target, bins: int, batch: tuple[int, ...]) -> None:
    logits, _, _, edges = inputs(*batch, bins=bins, device=native.device)
    edges = edges + 0.5  # not symmetric
    ours = with_grad(lambda x: two_hot_mean(x, edges), logits)
    with fastwm.backend("ref"):
        assert_close(ours, with_grad(lambda x: two_hot_mean(x, edges), logits), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    logits, target, target2, edges = inputs(19, bins=77, dtype=dtype)

    def run(x: Tensor) -> list[Tensor]:
        wide = edges.double() if x.dtype == torch.float64 else edges
        loss = loss_with_grad(x, target.to(wide), wide, target2.to(wide), 0.3)
        return loss + with_grad(lambda x: two_hot_mean(x, wide), x)

    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = run(logits)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = run(logits.double())
    for x, truth in zip(ours, exact, strict=True):
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 2**-8}[x.dtype]
        assert (x - truth).abs().max() <= tolerance * truth.abs().max()


def test_float32_mean_is_no_worse_than_the_plain_one(native: Target) -> None:
    """Bins up to 5e8 cancel: the error is that of the largest terms, and must not be more."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 255, generator=generator).to(native.device)
    bins = symexp_bins().to(native.device)
    ours = two_hot_mean(logits, bins)
    with fastwm.backend("ref"):
        plain, exact = two_hot_mean(logits, bins), two_hot_mean(logits.double(), bins.double())
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


@given(
    batch=st.lists(st.integers(0, 4), max_size=2),
    bins=st.integers(0, 6).map(lambda half: 2 * half + 1),
    second=st.booleans(),
    permuted=st.booleans(),
    step=st.integers(1, 2),
)
def test_any_shape_and_strides(batch: list[int], bins: int, second: bool, permuted: bool, step: int) -> None:
    logits, target, target2, _ = inputs(*(step * size for size in batch), bins=bins)
    if permuted:  # the same shape, laid out the other way round
        logits, target = (
            x.permute([*reversed(range(x.dim()))]).contiguous().permute([*reversed(range(x.dim()))])
            for x in (logits, target)
        )
    cut = tuple(slice(None, None, step) for _ in batch)
    logits, target, target2 = logits[cut], target[cut], target2[cut]
    edges = torch.linspace(-2, 2, 2 * bins, dtype=torch.float64)[::2]
    tail = (target2, -0.4) if second else ()
    ours = loss_with_grad(logits, target, edges, *tail) + with_grad(lambda x: two_hot_mean(x, edges), logits)
    with fastwm.backend("ref"):
        wanted = loss_with_grad(logits, target, edges, *tail) + with_grad(lambda x: two_hot_mean(x, edges), logits)
    assert_close(ours, wanted, atol=1e-11, rtol=1e-11)


def test_second_target_is_a_second_loss(on: Target) -> None:
    logits, target, target2, edges = inputs(6, device=on.device)
    both = two_hot_loss(logits, target, edges, target2, 0.3)
    assert_close(both, two_hot_loss(logits, target, edges) + 0.3 * two_hot_loss(logits, target2, edges))


def test_repeats_bitwise(on: Target) -> None:
    logits, target, target2, edges = inputs(40, bins=33, dtype=torch.float32, device=on.device)
    first = loss_with_grad(logits, target, edges, target2)
    for _ in range(50 if on.backend != "triton" or on.device == "cuda" else 2):
        assert all(map(torch.equal, first, loss_with_grad(logits, target, edges, target2)))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_threads_change_nothing() -> None:
    logits, target, _, edges = inputs(701, bins=255, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(loss_with_grad(logits, target, edges) + with_grad(lambda x: two_hot_mean(x, edges), logits))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


# ----------------------------------------------------------------------------------------------- gradients


def test_gradcheck(on: Target) -> None:
    logits, target, target2, edges = inputs(3, bins=5, device=on.device)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: two_hot_loss(x, target, edges, target2, 0.5), logits)
    assert torch.autograd.gradcheck(lambda x: two_hot_mean(x, edges), logits)


def test_reference_is_differentiable_twice() -> None:
    logits, target, _, edges = inputs(2, bins=3)
    logits.requires_grad_()
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(lambda x: two_hot_loss(x, target, edges), logits)
        assert torch.autograd.gradgradcheck(lambda x: two_hot_mean(x, edges), logits)


def test_second_derivative_is_refused(native: Target) -> None:
    logits, target, _, edges = inputs(2, bins=3, device=native.device)
    logits.requires_grad_()
    for y in (two_hot_loss(logits, target, edges), two_hot_mean(logits, edges)):
        (grad,) = torch.autograd.grad(y.sum(), logits, create_graph=True)
        with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
            grad.sum().backward()


def test_targets_get_no_gradient(on: Target) -> None:
    logits, target, target2, edges = inputs(4, device=on.device)
    for x in (logits, target, target2):
        x.requires_grad_()
    two_hot_loss(logits, target, edges, target2).sum().backward()
    assert logits.grad is not None
    assert target.grad is None and target2.grad is None
    with torch.no_grad():
        assert two_hot_loss(logits, target, edges).grad_fn is None


# ------------------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(native: Target, dtype: torch.dtype) -> None:
    library = getattr(torch.ops, native.library)
    for batch in [(), (4, 2)]:
        logits, target, target2, edges = inputs(*batch, bins=5, dtype=dtype, device=native.device)
        leaf = logits.clone().requires_grad_()
        for tail in [(None, 1.0), (target2, 0.5)]:
            torch.library.opcheck(library.two_hot_loss.default, (logits, target, edges, *tail))
            torch.library.opcheck(library.two_hot_loss.default, (leaf, target, edges, *tail))
            loss, logsumexp = library.two_hot_loss(logits, target, edges, *tail)
            args = (loss, logits, target, edges, *tail, logsumexp)
            torch.library.opcheck(library.two_hot_loss_backward.default, args)
        torch.library.opcheck(library.two_hot_mean.default, (leaf, edges))
        mean, logsumexp = library.two_hot_mean(logits, edges)
        torch.library.opcheck(library.two_hot_mean_backward.default, (mean, logits, edges, mean, logsumexp))


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for name in ("two_hot_loss", "two_hot_loss_backward", "two_hot_mean", "two_hot_mean_backward"):
        ours, theirs = (getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton"))
        assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


def test_compiles_whole_with_dynamic_shapes(on: Target) -> None:
    torch._dynamo.reset()

    def fn(logits: Tensor, target: Tensor, edges: Tensor) -> Tensor:
        return 2 * two_hot_loss(logits, target, edges) + two_hot_mean(logits, edges)

    compiled = torch.compile(fn, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in [(4, 3), (6, 5)] if on.backend != "ref" else [(4, 3)]:
        logits, target, _, edges = inputs(*batch, device=on.device)
        logits.requires_grad_()
        got, want = compiled(logits, target, edges), fn(logits, target, edges)
        assert_close(got, want)
        assert_close(*(torch.autograd.grad(x.square().sum(), logits) for x in (got, want)))


def test_vmap_and_functional_gradients(native: Target) -> None:
    logits, target, _, edges = inputs(4, 3, device=native.device)
    assert_close(
        torch.vmap(two_hot_loss, in_dims=(0, 0, None))(logits, target, edges), two_hot_loss(logits, target, edges)
    )
    assert_close(torch.vmap(two_hot_mean, in_dims=(1, None), out_dims=1)(logits, edges), two_hot_mean(logits, edges))
    grad = torch.func.grad(lambda x, y: two_hot_loss(x, y, edges).sum())
    assert_close(torch.vmap(grad)(logits, target), grad(logits, target))


def test_autocast_computes_in_float32(on: Target) -> None:
    logits, target, _, edges = inputs(4, bins=33, dtype=torch.bfloat16, device=on.device)
    with torch.autocast(on.device, torch.bfloat16):
        assert_close(two_hot_loss(logits, target, edges), two_hot_loss(logits.float(), target, edges))
        assert two_hot_mean(logits, edges).dtype == torch.float32


def test_float16_is_served_by_the_reference() -> None:
    logits, target, _, edges = inputs(4, dtype=torch.float16)
    assert two_hot_loss(logits, target, edges).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, b: (x[..., :8], y, b[:8]), r"K odd, got \[4, 8\]"),
        (lambda x, y, b: (x.sum(), y, b), r"K odd, got \[\]"),
        (lambda x, y, b: (x.long(), y, b), "torch.int64"),
        (lambda x, y, b: (x, y[:3], b), r"target \[4\].*\[3\]"),
        (lambda x, y, b: (x, y, b[:5]), r"bins \[9\].*\[5\]"),
        (lambda x, y, b: (x, y.to("meta"), b), "target.*on cpu.*meta"),
        (lambda x, y, b: (x, y, b, y[None]), r"second_target \[4\].*\[1, 4\]"),
    ],
)
def test_wrong_arguments_are_explained(change, message: str) -> None:  # type: ignore[no-untyped-def]
    logits, target, _, edges = inputs(4)
    with pytest.raises(ValueError, match=message):
        two_hot_loss(*change(logits, target, edges))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    x, y, _, b = inputs(4)
    for bad in [(x[..., :8], y, b[:8]), (x, y[:2], b), (x, y, b[:3]), (x.float(), y, b), (x.sum(), y, b)]:
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.two_hot_loss(*bad, None, 1.0)


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    logits, target, _, edges = inputs(64, bins=255, dtype=torch.float32, device="cuda")
    two_hot_loss(logits, target, edges)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = two_hot_loss(logits, target, edges)
    logits.mul_(2)
    graph.replay()
    assert_close(loss, two_hot_loss(logits, target, edges))


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
