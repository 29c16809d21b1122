"""DreamerV3's critic over all imagined states (16 x 1024 rows), forward and backward, against the plain modules."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.conftest import DEVICE, Measure, backend_of
from fastwm.nn.layers import MLP, Linear, RMSNorm
from fastwm.ops import MLPWeights, mlp

ROWS, OUTPUTS = 16 * 1024, 255
SIZES = {  # deter, units, stoch, classes
    "size1m": (512, 64, 32, 4),
    "size12m": (2048, 256, 32, 16),
}


@pytest.mark.parametrize("name", ["fastwm", "eager", "fastwm bf16", "eager bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_mlp(measure: Measure, size: str, name: str) -> None:
    torch.manual_seed(0)
    D, U, S, C = SIZES[size]
    layers, out = MLP(D + S * C, U, 3), Linear(U, OUTPUTS)
    x, grad = torch.randn(ROWS, D).tanh(), torch.randn(ROWS, OUTPUTS)
    onehot = F.one_hot(torch.randint(C, (ROWS, S)), C).flatten(1).float()
    weights = [*layers.parameters(), *out.parameters()]

    def fused() -> Tensor:
        return mlp(x, MLPWeights(layers.params, out.params), onehot, RMSNorm.eps)

    def eager() -> Tensor:
        y: Tensor = out(layers(torch.cat([x, onehot], -1)))
        return y.float()

    fn = fused if name.startswith("fastwm") else eager

    def run() -> tuple[Tensor, ...]:
        with backend_of(name), torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name):
            y = fn()
        return torch.autograd.grad(y, weights, grad)

    assert_close(fused(), eager(), atol=1e-4, rtol=1e-4)
    # What must cross memory: the input twice, the layers before their norms there and back, output and its gradient.
    measure(run, group=size, variant=name, bytes_moved=4 * ROWS * (2 * (D + S * C) + 6 * U + 2 * OUTPUTS))
