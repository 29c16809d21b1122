"""The lambda-return against the loop that Dreamer code bases write, eager and compiled."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm.ops import lambda_return

LAM = 0.95
SHAPES = [(15, 1024), (64, 16), (15, 16384)]


def loop(reward: Tensor, cont: Tensor, next_value: Tensor) -> Tensor:
    """As the peers write it: what does not depend on the running value is computed for all steps at once."""
    interm = reward + cont * (1 - LAM) * next_value
    decay = cont * LAM
    ret, rets = next_value[-1], []
    for t in reversed(range(len(reward))):
        ret = interm[t] + decay[t] * ret
        rets.append(ret)
    return torch.stack(rets[::-1])


def variant(name: str) -> Callable[..., Tensor]:
    if name == "fastwm":
        return lambda r, c, v: lambda_return(r, c, v, LAM)
    if name == "eager":
        return loop
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(loop, fullgraph=True, dynamic=False)


@pytest.mark.parametrize("name", ["fastwm", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_lambda_return(measure: Measure, shape: tuple[int, int], backward: bool, name: str) -> None:
    args = [torch.rand(shape).requires_grad_(backward) for _ in range(3)]
    cotangent = torch.rand(shape)
    fn = variant(name)

    def run() -> tuple[Tensor, ...]:
        ret = fn(*args)
        return torch.autograd.grad(ret, args, cotangent) if backward else (ret,)

    got = run()
    with torch.no_grad() if not backward else torch.enable_grad():
        want = loop(*args)
        assert_close(got, torch.autograd.grad(want, args, cotangent) if backward else (want,))
    arrays = 4 + (7 if backward else 0)  # forward: three read, one written; backward: four read, three written
    group = f"{list(shape)} {'forward+backward' if backward else 'forward'}"
    measure(run, group=group, variant=name, bytes_moved=arrays * args[0].nbytes)
