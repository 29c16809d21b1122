"""The two-hot loss and mean against one-hot sums over the bins, eager and compiled."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm.nn.functional import symexp_bins
from fastwm.ops import two_hot_loss, two_hot_mean

ROWS = [1024, 15360]  # a batch of replay; the dreams started from it
BINS = 255


def loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """As the peers write it: neighbours by comparing with every bin, weights by distance, one-hot times log-softmax."""
    below = ((bins <= target[..., None]).sum(-1) - 1).clamp(0, BINS - 1)
    above = (BINS - (bins > target[..., None]).sum(-1)).clamp(0, BINS - 1)
    equal = below == above
    to_below = torch.where(equal, 1, (bins[below] - target).abs())
    to_above = torch.where(equal, 1, (bins[above] - target).abs())
    total = to_below + to_above
    encoding = (
        F.one_hot(below, BINS) * (to_above / total)[..., None] + F.one_hot(above, BINS) * (to_below / total)[..., None]
    )
    return -(encoding * F.log_softmax(logits, -1)).sum(-1)


def mean(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    probs = F.softmax(logits, -1)
    half = BINS // 2
    low, centre, high = probs[..., :half] * bins[:half], probs[..., half] * bins[half], probs[..., half + 1 :]
    return (low.flip(-1) + high * bins[half + 1 :]).sum(-1) + centre


FUSED = {"two_hot_loss": two_hot_loss, "two_hot_mean": lambda logits, target, bins: two_hot_mean(logits, bins)}
EAGER = {"two_hot_loss": loss, "two_hot_mean": mean}


def variant(name: str, function: str) -> Callable[..., Tensor]:
    if name == "fastwm":
        return FUSED[function]
    if name == "eager":
        return EAGER[function]
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(EAGER[function], fullgraph=True, dynamic=False)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("function", EAGER)
def test_two_hot(measure: Measure, function: str, backward: bool, rows: int, name: str) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    logits = torch.randn(rows, BINS, generator=generator).requires_grad_(backward)
    target, cotangent = (10 * torch.randn(rows, generator=generator) for _ in range(2))
    bins = symexp_bins(BINS)
    fn = variant(name, function)

    def run() -> Tensor:
        y = fn(logits, target, bins)
        return torch.autograd.grad(y, logits, cotangent)[0] if backward else y

    got = run()
    want = EAGER[function](logits, target, bins)
    want = torch.autograd.grad(want, logits, cotangent)[0] if backward else want
    assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=1e-4)
    arrays = 1 + (2 if backward else 0)  # forward: logits read; backward: logits read, their gradient written
    group = f"{function} {[rows, BINS]} {'forward+backward' if backward else 'forward'}"
    measure(run, group=group, variant=name, bytes_moved=arrays * logits.nbytes)
