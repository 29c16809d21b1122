"""RMSNorm and LayerNorm with SiLU against torch's norm and activation, eager and compiled."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm import ops

# One step of a scan; the 1024 rows of a batch at size12m and size200m; the channels of a small image.
SHAPES = [(16, 256), (1024, 256), (1024, 2048), (65536, 4)]
EPS = 1e-3


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.silu(F.rms_norm(x.float(), weight.shape, weight, EPS)).to(x.dtype)


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x.float(), weight.shape, weight, bias, EPS)).to(x.dtype)


def variant(name: str, fused: Callable[..., Tensor], eager: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if name == "fastwm":
        return lambda *args: fused(*args, eps=EPS)
    if name == "eager":
        return eager
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(eager, fullgraph=True, dynamic=False)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("norm", ["rms_norm_silu", "layer_norm_silu"])
def test_norm_act(measure: Measure, norm: str, backward: bool, shape: tuple[int, int], name: str) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    shapes = [shape, *[shape[-1:]] * (1 if norm == "rms_norm_silu" else 2)]
    args = [torch.randn(s, generator=generator).requires_grad_(backward) for s in shapes]
    cotangent = torch.randn(shape, generator=generator)
    eager = rms if norm == "rms_norm_silu" else layer
    fn = variant(name, getattr(ops, norm), eager)

    def run() -> tuple[Tensor, ...]:
        y = fn(*args)
        return torch.autograd.grad(y, args, cotangent) if backward else (y,)

    got = run()
    with torch.no_grad() if not backward else torch.enable_grad():
        want = eager(*args)
        wanted = torch.autograd.grad(want, args, cotangent) if backward else (want,)
    for ours, theirs in zip(got, wanted):
        assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)
    arrays = 2 + (3 if backward else 0)  # forward: x read, y written; backward: x and the cotangent read, d_x written
    group = f"{norm} {list(shape)} {'forward+backward' if backward else 'forward'}"
    measure(run, group=group, variant=name, bytes_moved=arrays * args[0].nbytes)
