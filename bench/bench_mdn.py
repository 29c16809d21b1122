"""Mixture densities at the World Models sizes, against the expressions that their ports write, eager and compiled."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm.ops import mdn_nll, mdn_sample

ROWS, CLASSES, TEMPERATURE = 1024, 5, 1.15
LATENTS = {"CarRacing": 32, "Doom": 64}


def eager_nll(logits: Tensor, mean: Tensor, log_std: Tensor, value: Tensor) -> Tensor:
    log_weight = logits - logits.logsumexp(-1, keepdim=True)
    log_normal = -0.5 * ((value.unsqueeze(-1) - mean) / log_std.exp()) ** 2 - log_std - math.log(math.sqrt(2 * math.pi))
    return -(log_weight + log_normal).logsumexp(-1)


def eager_sample(logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    k = torch.distributions.Categorical(logits=logits / TEMPERATURE).sample().unsqueeze(-1)
    mean, log_std = mean.gather(-1, k).squeeze(-1), log_std.gather(-1, k).squeeze(-1)
    return mean + log_std.exp() * math.sqrt(TEMPERATURE) * torch.randn_like(mean)


def cdf_sample(logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """A cheaper draw than multinomial's, by the inverse CDF."""
    u = torch.rand_like(mean[..., :1])
    k = ((logits / TEMPERATURE).softmax(-1).cumsum(-1) < u).sum(-1, keepdim=True).clamp(max=CLASSES - 1)
    mean, log_std = mean.gather(-1, k).squeeze(-1), log_std.gather(-1, k).squeeze(-1)
    return mean + log_std.exp() * math.sqrt(TEMPERATURE) * torch.randn_like(mean)


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, dynamic=False)


def network_output(latents: int) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    return torch.randn(ROWS, latents * 3 * CLASSES, generator=generator)


def split(out: Tensor) -> tuple[Tensor, ...]:
    """logits, mean and log_std, in the original's order."""
    return out.unflatten(-1, (-1, 3, CLASSES)).unbind(-2)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
@pytest.mark.parametrize("task", LATENTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_mdn_nll(measure: Measure, task: str, backward: bool, name: str) -> None:
    latents = LATENTS[task]
    args = [x.contiguous().requires_grad_(backward) for x in split(network_output(latents))]
    args.append(torch.randn(ROWS, latents, generator=torch.Generator(torch.get_default_device()).manual_seed(1)))
    cotangent = torch.rand(ROWS, latents)
    fn = {"fastwm": mdn_nll, "eager": eager_nll}.get(name) or compiled(eager_nll)

    def run() -> tuple[Tensor, ...]:
        nll = fn(*args)
        return torch.autograd.grad(nll, args[:3], cotangent) if backward else (nll,)

    want = eager_nll(*args)
    want = torch.autograd.grad(want, args[:3], cotangent) if backward else (want,)
    for x, y in zip(run(), want):
        assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())
    passes = 9 if backward else 3  # the three arrays: read; then read and written
    group = f"nll, {task} {list(args[0].shape)} {'forward+backward' if backward else 'forward'}"
    measure(run, group=group, variant=name, bytes_moved=passes * args[0].nbytes)


@pytest.mark.parametrize("name", ["fastwm", "eager", "eager, inverse CDF", "torch.compile, inverse CDF"])
@pytest.mark.parametrize("task", LATENTS)
def test_mdn_sample(measure: Measure, task: str, name: str) -> None:
    params = split(network_output(LATENTS[task]))
    variants = {
        "fastwm": lambda *x: mdn_sample(*x, TEMPERATURE),
        "eager": eager_sample,
        "eager, inverse CDF": cdf_sample,
    }
    fn = variants.get(name) or compiled(cdf_sample)
    group = f"sample and its noise, {task} {list(params[0].shape)}"
    measure(lambda: fn(*params), group=group, variant=name, bytes_moved=3 * params[0].numel() * 4)
