"""The block GRU over a sequence, B = 16, T = 64, against a loop over its cell and against TorchRL's module.

TorchRL runs as it comes, and at its fastest CPU setting: the "scan" backend, compiled (which takes minutes).
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import DEVICE, Measure, backend_of
from fastwm import nn as fnn
from fastwm.nn import cell_weights

T, B = 64, 16
SIZES = {  # input, carry, embedding: as DreamerV3 has them in size1m and size12m, and TorchRL's default embedding
    "512": (128, 512, 64),
    "2048": (512, 2048, 256),
    "512, embedding 512": (128, 512, 512),
}
TORCHRL = pytest.mark.skipif(importlib.util.find_spec("torchrl") is None, reason="TorchRL is not installed")
PEERS = [pytest.param(name, marks=TORCHRL) for name in ("TorchRL", "TorchRL, compiled scan")]
VARIANTS = ["fastwm", "eager", "fused cells", *PEERS, "fastwm bf16", "eager bf16"]
Sequence = Callable[[Tensor, Tensor, Tensor], Tensor]


def loop(gru: fnn.BlockGRU) -> Sequence:
    """As one writes it: a cell, one step after the other, stacked."""
    cell = fnn.BlockGRUCell(
        gru.embed_inputs[0].linear.in_features, gru.hidden_size, gru.embed_carry.linear.out_features
    )
    for name in ("embed_carry", "embed_inputs", "hidden", "gates"):
        setattr(cell, name, getattr(gru, name))

    def run(x: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        outputs = []
        for t in range(T):
            h = cell(x[t], h, is_first[t])
            outputs.append(h)
        return torch.stack(outputs)

    return run


def torchrl(gru: fnn.BlockGRU, backend: str) -> Any:
    from torchrl.modules import DreamerV3BlockGRU

    layer = gru.embed_inputs[0].linear
    theirs = DreamerV3BlockGRU(
        layer.in_features, gru.hidden_size, projection_size=layer.out_features, recurrent_backend=backend
    )
    names = cell_weights.block_gru_from_torchrl(theirs.cell.state_dict())
    gru.load_state_dict(names)
    return theirs


def make(gru: fnn.BlockGRU, name: str) -> tuple[Sequence, torch.nn.Module]:
    """The sequence time-major, and the module that owns its parameters."""
    if name.startswith("TorchRL"):
        theirs = torchrl(gru, "scan" if "scan" in name else "reference")
        fn = torch.compile(theirs, dynamic=False) if "compiled" in name else theirs
        return lambda x, h, is_first: fn(x.transpose(0, 1), h, is_first.T)[0].transpose(0, 1), theirs
    return (loop(gru) if "eager" in name or "cells" in name else lambda x, h, is_first: gru(x, h, is_first)[0]), gru


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("size", SIZES)
def test_block_gru_scan(measure: Measure, size: str, backward: bool, name: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    inputs, width, embed = SIZES[size]
    gru = fnn.BlockGRU(inputs, width, embed_size=embed)
    fn, module = make(gru, name)
    x, h = torch.randn(T, B, inputs), torch.randn(B, width)
    is_first = torch.rand(T, B) < 0.02
    leaves = [x, h, *module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_(backward)
    cotangent = torch.randn(T, B, width)

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        with torch.set_grad_enabled(backward), torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name):
            with backend_of(name):
                output = fn(x, h, is_first)
            if backward:
                output.backward(cotangent)

    with torch.no_grad():
        assert_close(fn(x, h, is_first), gru(x, h, is_first)[0], atol=1e-3, rtol=1e-3)
    block, passes = width // 8, 3 if backward else 1
    weights = 2 * width * embed + 4 * width * block  # read at every step, and once more with their gradients
    outside = embed * (inputs + width)
    measure(run, group=f"block gru {size} {'forward+backward' if backward else 'forward'}", variant=name,
            bytes_moved=4 * passes * T * weights, flops=2 * passes * T * B * (weights + outside))  # fmt: skip
