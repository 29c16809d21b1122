"""Whole sequences of the recurrent cells, T = 64: against PyTorch's layers, or the loop over the plain cell, eager or
compiled. The input is as wide as the carry."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bench.bench_cells import layernorm_gru, planet_gru
from bench.conftest import Measure
from fastwm import nn as fnn
from fastwm import ops

T = 64
# name -> (the module that holds the weights, products a step of [D, D])
CELLS: dict[str, tuple[Callable[[int], Any], int]] = {
    "gru": (lambda D: fnn.GRU(D, D), 3),
    "lstm": (lambda D: fnn.LSTM(D, D), 4),
    "layernorm gru": (lambda D: fnn.LayerNormGRU(D, D), 3),
    "planet gru": (lambda D: fnn.PlanetGRUCell(D, D), 3),
}


def scan(module: Any, x: Tensor, h: Tensor) -> Tensor:
    if isinstance(module, fnn.PlanetGRUCell):
        return ops.planet_gru_scan(x, h, module.weight_ru, module.bias_ru, module.weight_c, module.bias_c)[0]
    if isinstance(module, fnn.LSTM):
        return module(x, (h[None], h[None]))[0]
    return module(x, h[None] if isinstance(module, fnn.GRU) else h)[0]


def theirs(module: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch's layer of the same weights, or the cell as peers write it, one step after the other."""
    if isinstance(module, (fnn.GRU, fnn.LSTM)):
        layer = (nn.GRU if isinstance(module, fnn.GRU) else nn.LSTM)(module.input_size, module.hidden_size)
        for name, p in module.named_parameters():
            setattr(layer, name, p)
        layer.flatten_parameters()
        return lambda x, h: layer(x, h[None] if isinstance(module, fnn.GRU) else (h[None], h[None]))[0]
    step = layernorm_gru(module) if isinstance(module, fnn.LayerNormGRU) else planet_gru(module)

    def loop(x: Tensor, h: Tensor) -> Tensor:
        outputs = []
        for x_t in x:
            h = step(x_t, h)
            outputs.append(h)
        return torch.stack(outputs)

    return loop


@pytest.mark.parametrize("name", ["fastwm", "torch", "torch.compile", "fastwm bf16", "torch bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("cell", "D", "B"),
    [(cell, D, B) for cell in CELLS for D, B in ((256, 16), (512, 16), (512, 1024))] + [("layernorm gru", 2048, 16)],
)
def test_scan(measure: Measure, cell: str, D: int, B: int, backward: bool, name: str) -> None:
    torch.manual_seed(0)
    make, gates = CELLS[cell]
    module = make(D)
    x, h = torch.randn(T, B, D, requires_grad=backward), torch.randn(B, D)
    fn = theirs(module)
    if name.startswith("fastwm"):
        fn = lambda x, h: scan(module, x, h)  # noqa: E731
    elif name == "torch.compile":
        if cell in ("gru", "lstm"):
            pytest.skip("torch.compile leaves PyTorch's layers as they are")
        if not shutil.which("c++"):
            pytest.skip("torch.compile needs a C++ compiler")
        torch._dynamo.reset()
        fn = torch.compile(fn, fullgraph=True, dynamic=False)
    leaves, cotangent = [x, *module.parameters()], torch.randn(T, B, D)

    def run() -> Any:
        with torch.set_grad_enabled(backward), torch.autocast(x.device.type, torch.bfloat16, enabled="bf16" in name):
            output = fn(x, h)
        return torch.autograd.grad(output, leaves, cotangent.to(output.dtype)) if backward else output

    with torch.no_grad():
        assert_close(scan(module, x, h), theirs(module)(x, h), atol=1e-4, rtol=1e-4)
    weights = sum(p.nbytes for p in module.parameters())
    passes = 3 if backward else 1  # weights read at every step, and once more with their gradients
    measure(run, group=f"{cell} {D}, B = {B}, {'forward+backward' if backward else 'forward'}", variant=name,
            bytes_moved=passes * T * weights, flops=passes * 2 * T * B * 2 * gates * D * D)  # fmt: skip
