"""Distributions against hand-derived numbers and the traps around them."""

import math

import pytest
import torch

from fastwm.nn import Bernoulli, BoundedNormal, Categorical, TwoHot, sigmoid2_std, softplus_std, symexp_bins
from fastwm.nn.heads import TwoHotHead
from fastwm.ops import categorical_kl, symexp, symlog


def test_symlog_and_symexp() -> None:
    assert symlog(torch.tensor(100.0)).item() == pytest.approx(4.61512052, rel=1e-6)
    assert symexp(torch.tensor(2.0)).item() == pytest.approx(6.38905610, rel=1e-6)
    x = torch.linspace(-50, 50, 101, dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)


def test_bins() -> None:
    bins = symexp_bins(255)
    assert bins[127] == 0 and torch.equal(bins, -bins.flip(0)) and len(bins.unique()) == 255
    expected = {0: -485165194.4098, 1: -414473535.0560, 126: -0.1705577153, 128: 0.1705577153, 129: 0.3702053648,
                130: 0.6039044613, 254: 485165194.4098}  # fmt: skip
    for index, value in expected.items():
        assert bins[index].item() == pytest.approx(value, rel=1e-5)
    for count in (254, 1):
        with pytest.raises(ValueError, match="odd"):
            symexp_bins(count)


def twohot(count: int = 255) -> TwoHot:
    return TwoHot(torch.zeros(count), symexp_bins(count))


def encoded(values: torch.Tensor) -> torch.Tensor:
    """The two-hot targets [N, K], read off the loss's gradient: softmax minus target."""
    bins = symexp_bins(255)
    logits = torch.zeros(len(values), 255, dtype=torch.float64, requires_grad=True)
    TwoHot(logits, bins).loss(values).sum().backward()
    assert logits.grad is not None
    return 1 / 255 - logits.grad


@pytest.mark.parametrize(
    ("value", "below", "weights"),
    [
        (0.1, 127, (0.41368821, 0.58631179)),
        (1.0, 131, (0.61732908, 0.38267092)),
        (-1.0, 122, (0.38267092, 0.61732908)),
        (10.0, 142, (0.78696302, 0.21303698)),
        (1000.0, 170, (0.13844850, 0.86155150)),
    ],
)
def test_two_hot_weights_live_in_raw_space(value: float, below: int, weights: tuple[float, float]) -> None:
    """Bin space."""
    target = encoded(torch.tensor([value]))[0]
    assert (target[below].item(), target[below + 1].item()) == pytest.approx(weights, abs=2e-5)
    assert target.abs().sum().item() == pytest.approx(1, abs=1e-5)


def test_two_hot_edges() -> None:
    """Ends of the bins: exactly a bin, zero, above the top, below the bottom; weights always sum to one, no NaN."""
    bins = symexp_bins(255)
    target = encoded(torch.cat([bins, torch.tensor([1e9, -1e9, 0.0])]))
    torch.testing.assert_close(target.sum(-1), torch.ones(258, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(target[:255], torch.eye(255, dtype=torch.float64), atol=1e-6, rtol=0)
    assert [row.argmax().item() for row in target[255:]] == [254, 0, 127]


def test_uniform_logits_decode_to_exactly_zero() -> None:
    """Symmetric mean.

    The mirrored sum; a naive left-to-right float32 sum gives -0.25. Fresh heads predict exactly 0.
    """
    assert twohot().mean.item() == 0
    assert twohot().loss(torch.tensor(3.0)).item() == pytest.approx(math.log(255), rel=1e-6)
    head = TwoHotHead(6, 8, 1)
    assert torch.equal(head(torch.randn(5, 6)).mean, torch.zeros(5))


def test_unimix_bounds_the_kl() -> None:
    """Unimix: the mixture is inside KL, entropy and sampling."""
    dist = Categorical(torch.tensor([50.0, 0, 0, 0]), 0.01)
    torch.testing.assert_close(dist.probs, torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]))
    dyn, rep = categorical_kl(torch.tensor([[50.0, 0, 0, 0]]), torch.zeros(1, 4), 0.01, 0.0)
    assert dyn.item() == rep.item() == pytest.approx(1.33388657, rel=1e-5)
    for classes, expected in {4: 5.92409692, 16: 7.29465649, 32: 7.98055965, 64: 8.66661914}.items():
        a, b = torch.zeros(2, classes), torch.zeros(2, classes)
        a[:, 0], b[:, 1] = 50, 50
        assert categorical_kl(a[:1], b[:1], 0.01, 0.0)[0].item() == pytest.approx(expected, rel=1e-5)
    assert dist.entropy().item() == pytest.approx(-(0.9925 * math.log(0.9925) + 0.0075 * math.log(0.0025)), rel=1e-5)


def test_straight_through_gradient_ignores_the_draw() -> None:
    """Straight-through gradient.

    The softmax Jacobian of the mixed probabilities, whatever was sampled; the value is exactly 0/1.
    """
    weight, gradients = torch.randn(3, 5), []
    base = torch.randn(3, 5)
    for _ in range(4):
        logits = base.clone().requires_grad_()
        sample = Categorical(logits, 0.01).onehot()
        assert ((sample == 0) | (sample == 1)).all() and (sample.sum(-1) == 1).all()
        (sample * weight).sum().backward()
        gradients.append(logits.grad)
    logits = base.clone().requires_grad_()
    ((0.99 * logits.softmax(-1)) * weight).sum().backward()
    for gradient in gradients:
        torch.testing.assert_close(gradient, logits.grad)


def test_inverse_cdf_sampling() -> None:
    dist = Categorical(torch.tensor([0.2, 0.3, 0.5]).log())
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 0.999999])
    wide = Categorical(dist.log_probs.expand(6, 3))
    assert wide.sample(uniform).tolist() == [0, 0, 1, 1, 2, 2]
    torch.manual_seed(0)
    counts = torch.bincount(Categorical(dist.log_probs.expand(20000, 3)).sample(), minlength=3)
    chi2 = ((counts - 20000 * torch.tensor([0.2, 0.3, 0.5])) ** 2 / (20000 * torch.tensor([0.2, 0.3, 0.5]))).sum()
    assert chi2 < 13.8  # p = 0.001 at two degrees of freedom


def test_bounded_normal() -> None:
    dist = BoundedNormal(torch.tensor([0.1]), torch.tensor([0.0]))
    assert dist.std.item() == pytest.approx(0.89271737, rel=1e-6)
    assert dist.entropy().item() == pytest.approx(1.30545329, rel=1e-6)
    assert dist.log_prob(torch.tensor([0.3])).item() == pytest.approx(-0.83063254, rel=1e-6)
    for raw, entropy in ((-40.0, -0.88364656), (40.0, 1.41893853)):
        assert BoundedNormal(torch.zeros(1), torch.tensor([raw])).entropy().item() == pytest.approx(entropy, rel=1e-6)


def test_the_sample_is_not_clipped() -> None:
    """Unclipped action: a sample of 1.7 stays 1.7, and its log-probability is that of 1.7."""
    dist = BoundedNormal(torch.tensor([0.0]), torch.tensor([0.0]))
    sample = dist.sample(torch.tensor([1.7]) / dist.std)
    assert sample.item() == pytest.approx(1.7)
    expected = torch.distributions.Normal(0.0, dist.std).log_prob(torch.tensor([1.7]))
    torch.testing.assert_close(dist.log_prob(sample), expected)


def test_continue_target_holds_the_discount() -> None:
    """Double discount: the soft target's minimum is 0.0204 nats, reached at the discount itself."""
    target = torch.tensor(1 - 1 / 333)
    best = Bernoulli(torch.logit(target))
    assert best.loss(target).item() == pytest.approx(0.02044036, rel=1e-4)
    assert best.prob.item() == pytest.approx(0.996996997, rel=1e-6)


def test_continue_is_a_probability() -> None:
    """Continuation as a probability: logit 0 means 0.5, not a threshold."""
    assert Bernoulli(torch.tensor(0.0)).prob.item() == 0.5


def test_standard_deviations_at_raw_zero() -> None:
    zero = torch.zeros(())
    assert softplus_std(zero).item() == pytest.approx(0.79314718, rel=1e-6)
    assert sigmoid2_std(zero).item() == pytest.approx(1.1, rel=1e-6)
    assert softplus_std(zero, 1e-4, math.log(math.exp(5) - 1)).item() == pytest.approx(5.0001, rel=1e-6)
