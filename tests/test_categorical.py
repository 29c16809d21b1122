"""Categoricals: golden values, traps (docs/traps.md) and sampling. See test_contract.py for the rest."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm.ops import balanced_categorical_kl, categorical_entropy, categorical_kl, straight_through_categorical
from tests.backends import Target

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


# Golden values, traps


def test_unimix_is_inside_probabilities_entropy_and_kl(on: Target) -> None:
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
def test_opposite_one_hots_have_a_bounded_kl(on: Target, classes: int, bound: float) -> None:
    post, prior = (one_hot_logits(k, of=classes, device=on.device) for k in (0, 1))
    dyn, rep = categorical_kl(post, prior)
    assert dyn.item() == pytest.approx(bound, abs=1e-8) and rep.item() == pytest.approx(bound, abs=1e-8)


def test_free_nats_hold_each_sum(on: Target) -> None:
    """One element has no KL, one six categoricals of 1.33388657; the maximum comes after their sum."""
    post = torch.zeros(2, 6, 4, dtype=torch.float64, device=on.device)
    post[1, :, 2] = 50
    dyn, _ = categorical_kl(post, torch.zeros_like(post))
    assert dyn.tolist() == pytest.approx([1, 6 * 1.33388657], abs=1e-7)
    loss = balanced_categorical_kl(post, torch.zeros_like(post), free_nats=1.0, unimix=0.01)
    assert loss.item() == pytest.approx(3 * 1.33388657, abs=1e-7)  # V2's mean is above the free nats


def test_straight_through_gradient_ignores_the_noise(on: Target) -> None:
    """The softmax Jacobian of the mixed probabilities, whatever was drawn; Gumbel's depends on the draw."""
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


def test_kl_trains_each_side_alone_and_nothing_below_the_free_nats(on: Target) -> None:
    """dyn trains the prior alone, rep the posterior alone: exactly zero below the free nats."""
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
    """V2 holds the batch's mean, and 0.8 of the loss trains the prior."""
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


# Sampling


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


# Against the reference


def test_extreme_logits_stay_finite(on: Target) -> None:
    """unimix = 0 goes by log-softmax: where a probability underflows, nothing becomes infinite or NaN."""
    args = inputs(4, 3, 5, dtype=torch.float32, device=on.device, scale=300.0)
    results = everything(args, 0.0) + everything(args, 0.01)
    assert all(x.isfinite().all() for x in results)
    assert_close(results[2], F.log_softmax(args[0], -1))


def test_more_classes_than_the_kernels_serve() -> None:
    args = inputs(2, 4097, dtype=torch.float32)
    assert_close(everything(args, 0.01), reference(args, 0.01))


# Gradients and contracts


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_gradcheck(on: Target, unimix: float) -> None:
    post, prior, uniform, _ = (x.requires_grad_(i < 2) for i, x in enumerate(inputs(1, 2, 3, device=on.device)))
    assert torch.autograd.gradcheck(lambda x: straight_through_categorical(x, uniform, unimix).log_prob, post)
    assert torch.autograd.gradcheck(lambda x: categorical_entropy(x, unimix), post)
    assert torch.autograd.gradcheck(lambda x: categorical_kl(post.detach(), x, unimix, 0.1)[0], prior)
    assert torch.autograd.gradcheck(lambda x: categorical_kl(x, prior.detach(), unimix, 0.1)[1], post)


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
