"""symlog and symexp against their formula in torch's operators, eager and compiled."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm import ops, ref

SHAPES = [(1024, 32), (1024, 1024)]  # vector observations of a batch; and of a rich one


def variant(name: str, function: str) -> Callable[[Tensor], Tensor]:
    if name == "fastwm":
        return getattr(ops, function)
    if name == "eager":
        return getattr(ref, function)
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(getattr(ref, function), fullgraph=True, dynamic=False)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("function", ["symlog", "symexp"])
def test_symlog(measure: Measure, function: str, backward: bool, shape: tuple[int, int], name: str) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_(backward)
    cotangent = torch.randn(shape, generator=generator)
    fn = variant(name, function)

    def run() -> Tensor:
        y = fn(x)
        return torch.autograd.grad(y, x, cotangent)[0] if backward else y

    want = getattr(ref, function)(x)
    assert_close(run(), torch.autograd.grad(want, x, cotangent)[0] if backward else want)
    arrays = 2 + (3 if backward else 0)  # read x, write y; read x or y and the cotangent, write the gradient
    group = f"{function} {list(shape)} {'forward+backward' if backward else 'forward'}"
    measure(run, group=group, variant=name, bytes_moved=arrays * x.nbytes)
