"""The two-hot loss and mean: golden numbers and traps (docs/traps.md). See test_contract.py for the rest."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.nn.functional import symexp_bins
from fastwm.ops import symexp, two_hot_loss, two_hot_mean
from tests.backends import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# A program of Triton's takes one row; its interpreter takes seconds for 130.


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


# Golden and traps


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
def test_encoding_is_two_hot_over_symexp_bins(on: Target, value: float, low: int, w_low: float) -> None:
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


def test_uniform_logits_predict_exactly_zero(on: Target) -> None:
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


def test_target_on_a_bin_whose_neighbour_is_ruled_out(native: Target) -> None:
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


# Against the reference


def test_float32_mean_is_no_worse_than_the_plain_one(native: Target) -> None:
    """Bins up to 5e8 cancel: the error is that of the largest terms, and must not be more."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 255, generator=generator).to(native.device)
    bins = symexp_bins().to(native.device)
    ours = two_hot_mean(logits, bins)
    with fastwm.backend("ref"):
        plain, exact = two_hot_mean(logits, bins), two_hot_mean(logits.double(), bins.double())
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


def test_second_target_is_a_second_loss(on: Target) -> None:
    logits, target, target2, edges = inputs(6, device=on.device)
    both = two_hot_loss(logits, target, edges, target2, 0.3)
    assert_close(both, two_hot_loss(logits, target, edges) + 0.3 * two_hot_loss(logits, target2, edges))


# Gradients


def test_targets_get_no_gradient(on: Target) -> None:
    logits, target, target2, edges = inputs(4, device=on.device)
    for x in (logits, target, target2):
        x.requires_grad_()
    two_hot_loss(logits, target, edges, target2).sum().backward()
    assert logits.grad is not None
    assert target.grad is None and target2.grad is None
    with torch.no_grad():
        assert two_hot_loss(logits, target, edges).grad_fn is None
