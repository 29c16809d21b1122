"""Categoricals: golden values and traps, every backend against the reference, gradients, contracts."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.ops import balanced_categorical_kl, categorical_entropy, categorical_kl, straight_through_categorical
from tests.conftest import INTERPRETED, Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ESTIMATORS = ["straight_through", "gumbel"]


def normal(*shape: int, seed: int = 0, like: Tensor | None = None, scale: float = 1.0) -> Tensor:
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if like is None else x.to(like)


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 2.0) -> list[Tensor]:
    """Posterior and prior logits [..., S, C], uniforms [..., S] and [..., S, C]."""
    draw = [normal(*shape, scale=scale), normal(*shape, seed=1, scale=scale), uniforms(*shape[:-1]), uniforms(*shape)]
    computed = torch.promote_types(dtype, torch.float32)
    return [x.to(device, kind) for x, kind in zip(draw, (dtype, dtype, computed, computed), strict=True)]


def everything(args: list[Tensor], unimix: float) -> list[Tensor]:
    """What every operator of the family returns, and its gradients under random cotangents."""
    post, prior = (x.detach().requires_grad_() for x in args[:2])
    results: list[Tensor] = []
    for estimator, uniform in zip(ESTIMATORS, args[2:], strict=True):
        sample, index, log_prob = straight_through_categorical(post, uniform, unimix, estimator)
        results += [sample.detach(), index, log_prob.detach()]
        d_sample, d_log_prob = normal(*sample.shape, seed=2, like=sample), normal(*sample.shape, seed=3, like=sample)
        results += torch.autograd.grad((sample, log_prob), post, (d_sample, d_log_prob), retain_graph=True)
        results += torch.autograd.grad(sample, post, d_sample, retain_graph=True)
        results += torch.autograd.grad(log_prob, post, d_log_prob)
    dyn, rep = categorical_kl(post, prior, unimix, 1.0)
    d_dyn, d_rep = normal(*dyn.shape, seed=4, like=dyn), normal(*dyn.shape, seed=5, like=dyn)
    results += [dyn.detach(), rep.detach(), *torch.autograd.grad((dyn, rep), (post, prior), (d_dyn, d_rep))]
    entropy = categorical_entropy(post, unimix)
    d_entropy = normal(*entropy.shape, seed=6, like=entropy)
    return [*results, entropy.detach(), *torch.autograd.grad(entropy, post, d_entropy)]


def reference(args: list[Tensor], unimix: float) -> list[Tensor]:
    with fastwm.backend("ref"):
        return everything(args, unimix)


def one_hot_logits(*classes: int, of: int, device: str, size: float = 100.0) -> Tensor:
    return size * F.one_hot(torch.tensor(classes), of).double().to(device)


# ------------------------------------------------------------------------------------- golden values, traps


def test_g9_unimix(on: Target) -> None:
    """G9, T9: unimix is inside the probabilities, the entropy and the KL."""
    logits = torch.tensor([[50.0, 0, 0, 0]], dtype=torch.float64, device=on.device)
    log_prob = straight_through_categorical(logits).log_prob
    want = torch.tensor([[0.9925, 0.0025, 0.0025, 0.0025]], dtype=torch.float64, device=on.device)
    assert_close(log_prob.exp(), want, atol=1e-8, rtol=0)
    dyn, _ = categorical_kl(logits, torch.zeros_like(logits))
    assert dyn.item() == pytest.approx(1.33388657, abs=1e-8)
    raw, _ = categorical_kl(logits, torch.zeros_like(logits), unimix=0.0)
    assert raw.item() == pytest.approx(1.38629436, abs=1e-8)
    assert categorical_entropy(logits).item() == pytest.approx(math.log(4) - 1.33388657, abs=1e-8)


@pytest.mark.parametrize(("classes", "bound"), [(4, 5.92409692), (16, 7.29465629), (32, 7.98055965), (64, 8.66661914)])
def test_g9_opposite_one_hots_have_a_bounded_kl(on: Target, classes: int, bound: float) -> None:
    post, prior = (one_hot_logits(k, of=classes, device=on.device) for k in (0, 1))
    dyn, rep = categorical_kl(post, prior)
    assert dyn.item() == pytest.approx(bound, abs=1e-8) and rep.item() == pytest.approx(bound, abs=1e-8)


def test_g10_v3_free_nats_hold_each_sum(on: Target) -> None:
    """G10, T11: one element has no KL, one six categoricals of 1.33388657; the maximum comes after their sum."""
    post = torch.zeros(2, 6, 4, dtype=torch.float64, device=on.device)
    post[1, :, 2] = 50
    dyn, _ = categorical_kl(post, torch.zeros_like(post))
    assert dyn.tolist() == pytest.approx([1, 6 * 1.33388657], abs=1e-7)
    loss = balanced_categorical_kl(post, torch.zeros_like(post), free_nats=1.0, unimix=0.01)
    assert loss.item() == pytest.approx(3 * 1.33388657, abs=1e-7)  # V2's mean is above the free nats


def test_t10_straight_through_gradient_ignores_the_noise(on: Target) -> None:
    """T10: the softmax Jacobian of the mixed probabilities, whatever was drawn; Gumbel's depends on the draw."""
    logits = normal(3, 5).to(on.device).requires_grad_()
    weight = normal(3, 5, seed=1).to(on.device)

    def gradient(estimator: str, seed: int) -> Tensor:
        uniform = uniforms(*((3, 5) if estimator == "gumbel" else (3,)), seed=seed).to(on.device)
        sample = straight_through_categorical(logits, uniform, 0.01, estimator).sample
        return torch.autograd.grad((sample * weight).sum(), logits)[0]

    q = F.softmax(logits.detach(), -1)
    jacobian = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    assert_close(gradient("straight_through", 0), 0.99 * (jacobian @ weight[:, :, None])[..., 0])
    assert torch.equal(gradient("straight_through", 0), gradient("straight_through", 7))
    assert not torch.allclose(gradient("gumbel", 0), gradient("gumbel", 7), atol=1e-3)


def test_t11_t12_gradients_of_the_two_sides(on: Target) -> None:
    """T12: dyn trains the prior alone, rep the posterior alone. T11: exactly zero below the free nats."""
    post, prior, *_ = inputs(6, 3, 4, device=on.device)
    post[::2] = prior[::2] + 0.01 * post[::2]  # every other element is below one nat
    post.requires_grad_()
    prior.requires_grad_()
    dyn, rep = categorical_kl(post, prior)
    assert torch.equal(dyn, rep) and (dyn[::2] == 1).all() and (dyn[1::2] > 1).all()
    for side, trained, other in ((dyn, prior, post), (rep, post, prior)):
        grad, none = torch.autograd.grad(side.sum(), (trained, other), retain_graph=True, allow_unused=True)
        assert none is None or not none.any()
        assert not grad[::2].any() and grad[1::2].abs().amin() > 0
    total = 1.0 * dyn.sum() + 0.1 * rep.sum()
    assert_close(total, 1.1 * dyn.sum())


@pytest.mark.parametrize("free_avg", [True, False])
@pytest.mark.parametrize("free", [0.0, 1.5])
def test_dreamerv2_balance(on: Target, free: float, free_avg: bool) -> None:
    """G10, T12: V2 holds the batch's mean, and 0.8 of the loss trains the prior."""
    post, prior, *_ = inputs(4, 5, 2, 3, device=on.device, scale=1.0)
    post[0] = prior[0]
    post.requires_grad_()
    prior.requires_grad_()
    loss = balanced_categorical_kl(post, prior, free_nats=free, free_avg=free_avg)

    def kl(p: Tensor, r: Tensor) -> Tensor:
        p, r = F.log_softmax(p, -1), F.log_softmax(r, -1)
        each = (p.exp() * (p - r)).sum((-2, -1))
        return each.mean().clamp(min=free) if free_avg else each.clamp(min=free).mean()

    want = 0.8 * kl(post.detach(), prior) + 0.2 * kl(post, prior.detach())
    assert_close(loss, want)
    assert_close(torch.autograd.grad(loss, (post, prior)), torch.autograd.grad(want, (post, prior)))


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ties_go_to_the_next_class(on: Target, dtype: torch.dtype) -> None:
    """cdf_k <= uniform is counted, and the last class catches all: exact, since the probabilities are 1/4."""
    uniform = torch.tensor([0, 0.2499, 0.25, 0.5, 0.75, 1 - 2**-24, 1, 7], device=on.device)
    sample, index, _ = straight_through_categorical(torch.zeros(8, 4, dtype=dtype, device=on.device), uniform, 0.0)
    assert index.tolist() == [0, 0, 1, 2, 3, 3, 3, 3]
    assert torch.equal(sample, F.one_hot(index, 4).to(sample.dtype))
    onehot = torch.full((8, 4), 0.5, device=on.device)
    assert straight_through_categorical(onehot.to(dtype), onehot, 0.0, "gumbel").index.tolist() == [0] * 8


def test_impossible_classes_are_never_drawn(on: Target) -> None:
    logits = torch.tensor([[-1e4, 0, -1e4, 0, -1e4]], device=on.device).expand(64, 5)
    uniform = torch.linspace(0, 1 - 2**-24, 64, device=on.device)
    _, index, log_prob = straight_through_categorical(logits, uniform, 0.0)
    assert set(index.tolist()) == {1, 3}
    assert log_prob[0].tolist() == pytest.approx([-1e4 - math.log(2), -math.log(2)] * 2 + [-1e4 - math.log(2)])


def test_zero_times_its_logarithm_is_zero(on: Target) -> None:
    """A class that -inf rules out adds nothing to an entropy or a KL, and makes no gradient infinite."""
    inf = math.inf
    logits = torch.tensor([[0.0, -inf, 1.0]], device=on.device, requires_grad=True)
    p = torch.tensor([1, math.e], dtype=torch.float64) / (1 + math.e)
    entropy = categorical_entropy(logits, 0.0)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)
    prior = torch.tensor([[[1.0, 2.0, 0.0]], [[1.0, -inf, 0.0]]], device=on.device, requires_grad=True)
    post = logits[:, None].expand(2, 1, 3)
    dyn, rep = categorical_kl(post, prior, 0.0, 0.0)
    for k, classes in enumerate(([0, 1, 2], [0, 2])):  # a prior with all classes, and one without the second
        r = torch.softmax(prior.detach().cpu().double()[k, 0, classes], 0)[[0, -1]]
        assert dyn[k].item() == pytest.approx((p * (p / r).log()).sum().item(), abs=1e-6)
    for loss in (entropy.sum(), dyn.sum(), rep.sum()):
        found = torch.autograd.grad(loss, (logits, prior), retain_graph=True, allow_unused=True)
        grads = [x for x in found if x is not None]
        assert grads and all(x.isfinite().all() for x in grads)
        assert all(abs(x.sum().item()) < 1e-6 for x in grads)
    assert categorical_kl(prior[:1], prior[1:], 0.0, 0.0)[0].item() == inf  # what the prior rules out has happened


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_have_the_mixed_distribution(on: Target, estimator: str) -> None:
    """Chi-square at one in a thousand, for 4 degrees of freedom."""
    draws = 20000 if on.backend != "triton" or on.device == "cuda" else 4000
    logits = torch.tensor([2.0, 0, -1, 1, -20], device=on.device).expand(draws, 5)
    shape = (draws, 5) if estimator == "gumbel" else (draws,)
    uniform = uniforms(*shape, seed=3).to(on.device, torch.float32)
    sample, index, log_prob = straight_through_categorical(logits, uniform, 0.1, estimator)
    expected = draws * log_prob[0].double().exp()
    assert expected[-1].item() == pytest.approx(0.02 * draws)
    observed = sample.double().sum(0)
    assert ((observed - expected).square() / expected).sum() < 18.47
    assert torch.equal(index.bincount(minlength=5), observed.long())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("classes", [4, 5, 16, 33])
def test_same_uniforms_same_indices(native: Target, classes: int, estimator: str) -> None:
    post, _, uniform, noise = inputs(40, 6, classes, dtype=torch.float32, device=native.device)
    uniform = noise if estimator == "gumbel" else uniform
    index = straight_through_categorical(post, uniform, estimator=estimator).index
    with fastwm.backend("ref"):
        assert torch.equal(index, straight_through_categorical(post, uniform, estimator=estimator).index)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_draws_its_own_noise_from_torchs_generator(on: Target, estimator: str) -> None:
    logits = torch.zeros(50, 8, device=on.device)
    torch.manual_seed(0)
    first = straight_through_categorical(logits, estimator=estimator).index
    other = straight_through_categorical(logits, estimator=estimator).index
    torch.manual_seed(0)
    assert torch.equal(first, straight_through_categorical(logits, estimator=estimator).index)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 2), (2, 3, 5), (2, 32, 4), (3, 5, 16), (2, 2, 17), (0, 3, 4)])
def test_equals_reference(native: Target, shape: tuple[int, ...], unimix: float) -> None:
    args = inputs(*shape, device=native.device)
    assert_close(everything(args, unimix), reference(args, unimix), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        for shape in [(9, 5, 4), (5, 7, 16), (3, 12, 21)]:
            args = inputs(*shape, dtype=dtype)
            for unimix in (0.0, 0.01):
                ours, exact = everything(args, unimix), reference([x.double() for x in args], unimix)
                tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
                for x, want in zip(ours, exact, strict=True):
                    assert_close(x.double(), want.double(), atol=tolerance * (1 + want.abs().max()), rtol=tolerance)
    finally:
        _lib.host.set_isa(before)


def test_reduced_precision_error_is_within_twice_pytorchs(native: Target) -> None:
    args = inputs(4, 8, 16, dtype=torch.bfloat16, device=native.device)
    ours, theirs = everything(args, 0.01), reference(args, 0.01)
    exact = reference([x.double() for x in args], 0.01)
    for x, pytorch, truth in zip(ours, theirs, exact, strict=True):
        assert x.dtype == pytorch.dtype
        rounding = 2**-8 if INTERPRETED and x.dtype == torch.bfloat16 else 4e-6  # the interpreter truncates
        assert (x - truth).abs().max() <= 2 * (pytorch - truth).abs().max() + rounding * truth.abs().max()


@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    groups=st.integers(1, 5),
    classes=st.integers(1, 19),
    unimix=st.sampled_from([0.0, 0.01, 0.5]),
    permuted=st.booleans(),
    step=st.integers(1, 2),
)
@settings(max_examples=40)
def test_any_shape_and_strides(
    batch: list[int], groups: int, classes: int, unimix: float, permuted: bool, step: int
) -> None:
    shape = (*batch, groups, classes)
    args = inputs(*(step * size for size in shape))
    if permuted:  # the same shape, laid out the other way round
        args = [x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in args]
    args = [x[(slice(None, None, step),) * x.dim()] for x in args]
    ours = everything(args, unimix)
    assert all(x.is_contiguous() for x in ours)
    assert_close(ours, reference(args, unimix), atol=1e-10, rtol=1e-10)


def test_extreme_logits_stay_finite(on: Target) -> None:
    """unimix = 0 goes by log-softmax: where a probability underflows, nothing becomes infinite or NaN."""
    args = inputs(4, 3, 5, dtype=torch.float32, device=on.device, scale=300.0)
    results = everything(args, 0.0) + everything(args, 0.01)
    assert all(x.isfinite().all() for x in results)
    assert_close(results[2], F.log_softmax(args[0], -1))


def test_more_classes_than_the_kernels_serve() -> None:
    args = inputs(2, 4097, dtype=torch.float32)
    assert_close(everything(args, 0.01), reference(args, 0.01))


def test_repeats_bitwise(on: Target) -> None:
    args = inputs(7, 8, 12, dtype=torch.float32, device=on.device)
    first = everything(args, 0.01)
    for _ in range(30 if on.backend != "triton" or on.device == "cuda" else 2):
        assert all(map(torch.equal, first, everything(args, 0.01)))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_threads_change_nothing() -> None:
    args = inputs(300, 8, 17, dtype=torch.float32)  # above the size from which threads share the rows
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = everything(args, 0.01)
    torch.set_num_threads(max(threads, 3))
    together = everything(args, 0.01)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


# ------------------------------------------------------------------------------------ gradients and contracts


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_gradcheck(on: Target, unimix: float) -> None:
    post, prior, uniform, _ = (x.requires_grad_(i < 2) for i, x in enumerate(inputs(1, 2, 3, device=on.device)))
    assert torch.autograd.gradcheck(lambda x: straight_through_categorical(x, uniform, unimix).log_prob, post)
    assert torch.autograd.gradcheck(lambda x: categorical_entropy(x, unimix), post)
    assert torch.autograd.gradcheck(lambda x: categorical_kl(post.detach(), x, unimix, 0.1)[0], prior)
    assert torch.autograd.gradcheck(lambda x: categorical_kl(x, prior.detach(), unimix, 0.1)[1], post)


def test_second_derivative_is_refused(native: Target) -> None:
    logits = normal(3, 2).to(native.device).requires_grad_()
    grad = torch.autograd.grad(categorical_entropy(logits).sum(), logits, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        grad.sum().backward()
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(categorical_entropy, logits)


def test_no_gradient_nothing_kept(native: Target) -> None:
    logits = normal(3, 2).to(native.device).requires_grad_()
    with torch.no_grad():
        assert all(x.grad_fn is None for x in straight_through_categorical(logits))
    sample, index, log_prob = straight_through_categorical(logits)
    assert sample.requires_grad and log_prob.requires_grad and not index.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(native: Target, dtype: torch.dtype) -> None:
    ops = getattr(torch.ops, native.library)
    post, prior, uniform, noise = inputs(2, 3, 4, dtype=dtype, device=native.device)
    strided = post.mT.contiguous().mT
    d_sample, d_log_prob, g = noise, noise.flip(0), uniform[:, 0]
    dyn = categorical_kl(post, prior)[0]
    calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (ops.straight_through_categorical, (strided, uniform, 0.01, False)),
        (ops.straight_through_categorical, (post.clone().requires_grad_(), uniform, 0.01, False)),
        (ops.straight_through_categorical, (post.clone().requires_grad_(), noise, 0.0, True)),
        (ops.straight_through_categorical_backward, (d_sample, d_log_prob, post, None, 0.01)),
        (ops.straight_through_categorical_backward, (d_sample.mT.contiguous().mT, None, post, noise, 0.01)),
        (ops.straight_through_categorical_backward, (None, d_log_prob, post, None, 0.01)),
        (ops.categorical_kl, (strided, prior, 0.01, 1.0)),
        (ops.categorical_kl, (post.clone().requires_grad_(), prior.clone().requires_grad_(), 0.01, 1.0)),
        (ops.categorical_kl_backward, (g, None, post, prior, dyn, 0.01, 1.0)),
        (ops.categorical_kl_backward, (g, g, strided, prior, dyn, 0.01, 1.0)),
        (ops.categorical_entropy, (post.clone().requires_grad_(), 0.01)),
        (ops.categorical_entropy_backward, (uniform, strided, 0.01)),
    ]
    for op, args in calls if dtype == torch.float32 else calls[1:7:5]:
        torch.library.opcheck(op.default, args)  # type: ignore[attr-defined]


def test_triton_has_the_same_schemas() -> None:
    if not (INTERPRETED and _lib.has_cpu):
        pytest.skip("needs TRITON_INTERPRET=1 and the native library")
    for forward in ("straight_through_categorical", "categorical_kl", "categorical_entropy"):
        for name in (forward, f"{forward}_backward"):
            ours, theirs = (
                getattr(getattr(torch.ops, lib), name).default._schema for lib in ("fastwm", "fastwm_triton")
            )
            assert str(ours).removeprefix("fastwm::") == str(theirs).removeprefix("fastwm_triton::")


def test_compiles_whole_with_dynamic_shapes(on: Target) -> None:
    def loss(post: Tensor, prior: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        weight = torch.arange(post.shape[-1], device=post.device)
        sample = (
            straight_through_categorical(post, uniform).sample
            + straight_through_categorical(prior, noise, estimator="gumbel").log_prob
        )
        dyn, rep = categorical_kl(post, prior, free_nats=0.1)
        return (sample * weight).sum() + (dyn + 0.1 * rep).sum() + categorical_entropy(prior).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, 3, 5), (6, 3, 5)] if on.backend != "ref" else [(4, 3, 5)]:
        args = inputs(*shape, device=on.device)
        leaves = [x.requires_grad_() for x in args[:2]]
        got, want = compiled(*args), loss(*args)
        assert_close(got, want)
        assert_close(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves))


def test_vmap_and_functional_gradients(native: Target) -> None:
    post, prior, uniform, _ = inputs(4, 2, 3, 5, device=native.device)
    mapped = torch.vmap(lambda x, u: tuple(straight_through_categorical(x, u)))(post, uniform)
    assert_close(mapped, tuple(straight_through_categorical(post, uniform)))
    shared = torch.vmap(categorical_kl, in_dims=(1, None))(post.movedim(0, 1), prior[0])
    assert_close(shared, categorical_kl(post, prior[:1].expand_as(post)))

    def loss(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        sample, _, log_prob = straight_through_categorical(x, u)
        dyn, rep = categorical_kl(x, y, free_nats=0.1)
        return (sample * log_prob).sum() + dyn.sum() + rep.sum() + categorical_entropy(x).sum()

    per_sample = torch.vmap(torch.func.grad(loss, (0, 1)))(post, prior, uniform)
    leaves = [x.requires_grad_() for x in (post, prior)]
    assert_close(per_sample, torch.autograd.grad(loss(*leaves, uniform), leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    args = inputs(4, 3, 5, dtype=dtype)
    leaf = args[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sample, _, log_prob = straight_through_categorical(leaf, args[2])
        kls = categorical_kl(leaf, args[1])
        entropy = categorical_entropy(leaf)
    assert all(x.dtype == torch.float32 for x in (sample, log_prob, *kls, entropy))
    assert torch.autograd.grad(entropy.sum(), leaf)[0].dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, u: straight_through_categorical(x[..., :0], u), r"C >= 1, got \[4, 3, 0\]"),
        (lambda x, u: straight_through_categorical(x.sum(), u), r"C >= 1, got \[\]"),
        (lambda x, u: straight_through_categorical(x.long(), u), "torch.int64"),
        (lambda x, u: straight_through_categorical(x, u[:2]), r"uniform \[4, 3\].*got \[2, 3\]"),
        (lambda x, u: straight_through_categorical(x, u, estimator="gumbel"), r"uniform \[4, 3, 5\]"),
        (lambda x, u: straight_through_categorical(x, u.long()), "floating-point.*torch.int64"),
        (lambda x, u: straight_through_categorical(x, u.to("meta")), "meta"),
        (lambda x, u: straight_through_categorical(x, u.clone().requires_grad_()), "uniform requires grad"),
        (lambda x, u: straight_through_categorical(x, u, unimix=1.0), r"\[0, 1\), got 1.0"),
        (lambda x, u: straight_through_categorical(x, u, estimator="reinforce"), "unknown estimator 'reinforce'"),
        (lambda x, u: categorical_kl(x, x[:2]), r"prior_logits \[2, 3, 5\]"),
        (lambda x, u: categorical_kl(x, x.float()), "torch.float32"),
        (lambda x, u: categorical_kl(x[0, 0], x[0, 0]), r"S, C >= 1, got \[5\]"),
        (lambda x, u: categorical_kl(x[:, :0], x[:, :0]), r"got \[4, 0, 5\]"),
        (lambda x, u: categorical_entropy(x, unimix=-0.1), "got -0.1"),
        (lambda x, u: categorical_entropy(x.bool()), "torch.bool"),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[Tensor, Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(normal(4, 3, 5), uniforms(4, 3))


@pytest.mark.skipif(not _lib.has_cpu, reason="not built")
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    ops, x, u = torch.ops.fastwm, normal(4, 3, 5), uniforms(4, 3)
    for call in [
        lambda: ops.straight_through_categorical(x, u[:2], 0.0, False),
        lambda: ops.straight_through_categorical(x, u, 0.0, True),
        lambda: ops.straight_through_categorical(x.half(), u, 0.0, False),
        lambda: ops.straight_through_categorical(x[..., :0], u, 0.0, False),
        lambda: ops.straight_through_categorical_backward(x[:2], None, x, None, 0.0),
        lambda: ops.categorical_kl(x, x[:2], 0.0, 0.0),
        lambda: ops.categorical_kl(x[:, :0], x[:, :0], 0.0, 0.0),
        lambda: ops.categorical_kl_backward(u, None, x, x, u, 0.0, 0.0),
        lambda: ops.categorical_entropy(x.sum(), 0.0),
        lambda: ops.categorical_entropy_backward(x, x, 0.0),
    ]:
        with pytest.raises(RuntimeError, match="fastwm"):
            call()


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    post, prior, uniform, _ = inputs(64, 32, 16, dtype=torch.float32, device="cuda")
    run = lambda: [*straight_through_categorical(post, uniform), *categorical_kl(post, prior)]  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    post.add_(torch.randn_like(post))
    graph.replay()
    assert_close(results, run())


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The tests whose name says triton, under Triton's interpreter, which must be chosen before import."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
