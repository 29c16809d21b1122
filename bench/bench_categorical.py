"""Categorical latents against what Dreamer code bases write, eager and compiled, at B * T = 1024 rows of 32."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm.ops import categorical_entropy, categorical_kl, straight_through_categorical

UNIMIX = 0.01
CASES = [("size1m", True), ("size12m", False), ("size12m", True), ("size200m", True)]
SHAPES = {"size1m": (1024, 32, 4), "size12m": (1024, 32, 16), "size200m": (1024, 32, 64)}


def mix(logits: Tensor) -> Tensor:
    return (1 - UNIMIX) * F.softmax(logits, -1) + UNIMIX / logits.shape[-1]


def straight_through(probs: Tensor, index: Tensor) -> Tensor:
    return F.one_hot(index, probs.shape[-1]).to(probs.dtype) + probs - probs.detach()


def multinomial(logits: Tensor) -> Tensor:
    """As dreamerv3-torch and sheeprl write it, through torch.distributions' sampler."""
    probs = mix(logits)
    index = torch.multinomial(probs.detach().flatten(0, -2), 1).view(probs.shape[:-1])
    return straight_through(probs, index)


def gumbel_argmax(logits: Tensor) -> Tensor:
    probs = mix(logits)
    noise = torch.empty_like(probs).exponential_().log()
    return straight_through(probs, (probs.detach().log() - noise).argmax(-1))


def gumbel_softmax(logits: Tensor) -> Tensor:
    """As r2dreamer writes it."""
    return F.gumbel_softmax(mix(logits).log(), hard=True)


def kl_distributions(post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """As dreamerv3-torch and sheeprl write it."""

    def distribution(logits: Tensor) -> Independent:
        return Independent(OneHotCategorical(logits=mix(logits).log(), validate_args=False), 1)

    dyn = kl_divergence(distribution(post.detach()), distribution(prior)).clamp(min=1)
    return dyn, kl_divergence(distribution(post), distribution(prior.detach())).clamp(min=1)


def kl_by_hand(post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    p, r = mix(post), mix(prior)
    log_p, log_r = p.log(), r.log()
    dyn = (p.detach() * (log_p.detach() - log_r)).sum((-2, -1)).clamp(min=1)
    return dyn, (p * (log_p - log_r.detach())).sum((-2, -1)).clamp(min=1)


def entropy_by_hand(logits: Tensor) -> Tensor:
    p = mix(logits)
    return -(p * p.log()).sum(-1)


def compiled(fn: Callable[..., object]) -> Callable[..., object]:
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, dynamic=False)


def inputs(shape: tuple[int, ...], count: int, backward: bool) -> list[Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_(backward) for _ in range(count)]


def group(what: str, size: str, backward: bool) -> str:
    return f"{what} {size} {list(SHAPES[size])} {'forward+backward' if backward else 'forward'}"


SAMPLERS = {
    "fastwm": lambda x: straight_through_categorical(x).sample,
    "eager, multinomial": multinomial,
    "eager, Gumbel argmax": gumbel_argmax,
    "torch.compile": gumbel_argmax,
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("size", "backward"), CASES)
def test_straight_through(measure: Measure, size: str, backward: bool, name: str) -> None:
    (logits,) = inputs(SHAPES[size], 1, backward)
    (cotangent,) = inputs(SHAPES[size], 1, False)
    fn = compiled(SAMPLERS[name]) if name == "torch.compile" else SAMPLERS[name]

    def run() -> tuple[Tensor, ...]:
        sample = fn(logits)
        return torch.autograd.grad(sample, logits, cotangent) if backward else (sample,)

    got = run()[0]
    if backward:
        assert_close(got, torch.autograd.grad(mix(logits), logits, cotangent)[0])
    else:
        assert_close(got.sum(-1), torch.ones_like(got[..., 0]))
    arrays = 3 + (3 if backward else 0)  # logits, sample, log_prob; cotangent, logits, gradient
    measure(run, group=group("sample", size, backward), variant=name, bytes_moved=arrays * logits.nbytes)


@pytest.mark.parametrize("name", ["fastwm", "eager"])
def test_gumbel(measure: Measure, name: str) -> None:
    size = "size12m"
    (logits,), (cotangent,) = inputs(SHAPES[size], 1, True), inputs(SHAPES[size], 1, False)

    def ours(x: Tensor) -> Tensor:
        return straight_through_categorical(x, estimator="gumbel").sample

    fn = ours if name == "fastwm" else gumbel_softmax

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fn(logits), logits, cotangent)

    measure(run, group=group("gumbel", size, True), variant=name, bytes_moved=8 * logits.nbytes)


KLS = {
    "fastwm": lambda post, prior: categorical_kl(post, prior, UNIMIX),
    "eager, torch.distributions": kl_distributions,
    "eager, by hand": kl_by_hand,
    "torch.compile": kl_by_hand,
}


@pytest.mark.parametrize("name", KLS)
@pytest.mark.parametrize(("size", "backward"), CASES)
def test_kl(measure: Measure, size: str, backward: bool, name: str) -> None:
    args = inputs(SHAPES[size], 2, backward)
    cotangents = [torch.full((len(args[0]),), scale / len(args[0])) for scale in (1.0, 0.1)]
    fn = compiled(KLS[name]) if name == "torch.compile" else KLS[name]

    def run() -> tuple[Tensor, ...]:
        sides = fn(*args)
        return torch.autograd.grad(sides, args, cotangents) if backward else sides

    want = kl_by_hand(*args)
    assert_close(run(), torch.autograd.grad(want, args, cotangents) if backward else want)
    arrays = 2 + (4 if backward else 0)
    measure(run, group=group("kl", size, backward), variant=name, bytes_moved=arrays * args[0].nbytes)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
def test_entropy(measure: Measure, name: str) -> None:
    size = "size12m"
    (logits,) = inputs(SHAPES[size], 1, True)
    cotangent = torch.ones(SHAPES[size][:-1])
    fn = {"fastwm": categorical_entropy, "eager": entropy_by_hand}.get(name) or compiled(entropy_by_hand)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fn(logits), logits, cotangent)

    assert_close(run(), torch.autograd.grad(entropy_by_hand(logits), logits, cotangent))
    measure(run, group=group("entropy", size, True), variant=name, bytes_moved=3 * logits.nbytes)
