"""One step of each recurrent cell, products and all, against what peers write, eager and compiled, and PyTorch's.

eager          the cell as peers write it: dreamerv3-torch's, r2dreamer's, or the paper's equations
torch.compile  the same function, compiled
torch.nn       PyTorch's own GRUCell and LSTMCell
TorchRL        its DreamerV3BlockGRUCell, for the whole recurrent core
"""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.conftest import Measure
from fastwm import nn as fnn
from fastwm.nn import cell_weights

Fn = Callable[..., Any]
LARGE = ("gru 200", "layernorm gru 600", "block gates 512", "lstm 256")  # these with B = 1024 too
VARIANTS = ["fastwm", "eager", "torch.compile", "torch.nn"]


def block_linear(x: Tensor, layer: Any) -> Tensor:
    """As r2dreamer and TorchRL write it."""
    G, I, O = layer.weight.shape
    return torch.bmm(x.view(-1, G, I).transpose(0, 1), layer.weight).transpose(0, 1).reshape(-1, G * O) + layer.bias


def gru(cell: Any) -> Fn:
    def step(x: Tensor, h: Tensor) -> Tensor:
        i_r, i_z, i_n = F.linear(x, cell.weight_ih, cell.bias_ih).chunk(3, 1)
        h_r, h_z, h_n = F.linear(h, cell.weight_hh, cell.bias_hh).chunk(3, 1)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + r * h_n)
        return n + z * (h - n)

    return step


def planet_gru(cell: Any) -> Fn:
    def step(x: Tensor, h: Tensor) -> Tensor:
        r, u = torch.sigmoid(F.linear(torch.cat([x, h], -1), cell.weight_ru, cell.bias_ru)).chunk(2, -1)
        c = torch.tanh(F.linear(torch.cat([x, r * h], -1), cell.weight_c, cell.bias_c))
        return u * h + (1 - u) * c

    return step


def layernorm_gru(cell: Any) -> Fn:
    def step(x: Tensor, h: Tensor) -> Tensor:
        reset, cand, update = cell.layer_norm(cell.linear(torch.cat([x, h], -1))).chunk(3, -1)
        reset = torch.sigmoid(reset)
        cand = torch.tanh(reset * cand)
        update = torch.sigmoid(update - 1)
        return update * cand + (1 - update) * h

    return step


def dreamer_gates(gates: Tensor, h: Tensor, blocks: int) -> Tensor:
    reset, cand, update = (x.flatten(1) for x in gates.view(len(h), blocks, -1).chunk(3, -1))
    reset = torch.sigmoid(reset)
    cand = torch.tanh(reset * cand)
    update = torch.sigmoid(update - 1)
    return update * cand + (1 - update) * h


def block_gru_step(layer: Any) -> Fn:
    return lambda x, h: dreamer_gates(block_linear(x, layer), h, len(layer.weight))


def lstm(cell: Any) -> Fn:
    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f + cell.forget_bias) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    return step


class BlockGates(fnn.BlockLinear):
    """The last layer of DreamerV3's core."""

    def __init__(self, width: int):
        super().__init__(width, 3 * width, 8)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        from fastwm.ops import block_gru_step

        return block_gru_step(x, h, self.weight, self.bias)


# name -> (input width, carry width, carries, our module, the peers' function of its weights)
CELLS: dict[str, tuple[int, int, int, Fn, Fn]] = {
    "gru 200 (Dreamer V1)": (200, 200, 1, lambda: fnn.GRUCell(200, 200), gru),
    "planet gru 200": (200, 200, 1, lambda: fnn.PlanetGRUCell(200, 200), planet_gru),
    "layernorm gru 200": (200, 200, 1, lambda: fnn.LayerNormGRUCell(200, 200), layernorm_gru),
    "layernorm gru 600 (Dreamer V2)": (600, 600, 1, lambda: fnn.LayerNormGRUCell(600, 600), layernorm_gru),
    "block gates 512 (size1m)": (512, 512, 1, lambda: BlockGates(512), block_gru_step),
    "block gates 2048 (size12m)": (2048, 2048, 1, lambda: BlockGates(2048), block_gru_step),
    "lstm 256 (World Models)": (35, 256, 2, lambda: fnn.LSTMCell(35, 256, forget_bias=1.0), lstm),
}


def variant(name: str, cell: Any, peers: Fn) -> Fn:
    if name == "fastwm":
        return lambda x, h, c=None: cell(x, h) if c is None else cell(x, (h, c))
    if name == "eager":
        return peers(cell)
    if name == "torch.compile":
        if not shutil.which("c++"):
            pytest.skip("torch.compile needs a C++ compiler")
        torch._dynamo.reset()
        return torch.compile(peers(cell), fullgraph=True, dynamic=False)
    if isinstance(cell, nn.GRUCell):
        return nn.GRUCell(cell.input_size, cell.hidden_size)
    if isinstance(cell, nn.LSTMCell):
        return TorchLSTM(cell.input_size, cell.hidden_size)
    pytest.skip("PyTorch has no such cell")


class TorchLSTM(nn.LSTMCell):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, (h, c))


def compare(measure: Measure, group: str, name: str, fn: Fn, want: Fn, module: Any, inputs: list[Tensor]) -> None:
    """Measures `fn`, after checking it, forward or forward and backward as the inputs require gradients."""
    backward = inputs[0].requires_grad
    parameters = [p for p in module.parameters() if backward]
    if isinstance(fn, (nn.GRUCell, nn.LSTMCell)):  # with weights of its own
        fn.load_state_dict(module.state_dict())
        if isinstance(fn, TorchLSTM):  # which has no constant: in the forget gate's bias
            with torch.no_grad():
                fn.bias_ih[fn.hidden_size : 2 * fn.hidden_size] += module.forget_bias
    own = [*fn.parameters()] if isinstance(fn, nn.Module) and backward else parameters

    def run(fn: Fn = fn, parameters: list[Any] = own) -> Any:
        with torch.set_grad_enabled(backward):
            out = fn(*inputs)
            out = out if isinstance(out, tuple) else (out,)
            if not backward:
                return out
            return torch.autograd.grad(out, [*inputs, *parameters], [torch.ones_like(y) for y in out])

    got, expected = run()[: len(inputs)], run(want, parameters)[: len(inputs)]
    for x, y in zip(got, expected, strict=True):
        assert_close(x, y, atol=1e-4, rtol=1e-4)
    carries = sum(x.nbytes for x in inputs)
    weights = sum(p.nbytes for p in module.parameters())
    measure(run, group=group, variant=name, bytes_moved=(1 + backward) * (2 * carries + weights))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("cell_name", "batch"), [(cell, B) for cell in CELLS for B in (16, 1024) if B == 16 or cell.startswith(LARGE)]
)
def test_cell(measure: Measure, cell_name: str, batch: int, backward: bool, name: str) -> None:
    torch.manual_seed(0)
    inputs, width, carries, make, peers = CELLS[cell_name]
    cell = make()
    tensors = [torch.randn(batch, n).requires_grad_(backward) for n in (inputs, *[width] * carries)]
    group = f"{cell_name}, B = {batch}, {'forward+backward' if backward else 'forward'}"
    compare(measure, group, name, variant(name, cell, peers), peers(cell), cell, tensors)


@pytest.mark.skipif(importlib.util.find_spec("torchrl") is None, reason="TorchRL is not installed")
@pytest.mark.parametrize("name", ["fastwm", "fastwm, compiled", "TorchRL", "TorchRL, compiled"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("batch", "width"), [(16, 512), (1024, 512), (16, 2048)])
def test_core(measure: Measure, batch: int, width: int, backward: bool, name: str) -> None:
    """DreamerV3's whole recurrent core."""
    from torchrl.modules import DreamerV3BlockGRUCell

    torch.manual_seed(0)
    theirs = DreamerV3BlockGRUCell(width // 4, width, projection_size=width // 8)
    ours = fnn.BlockGRUCell(width // 4, width, embed_size=width // 8)
    ours.load_state_dict(cell_weights.block_gru_from_torchrl(theirs.state_dict()))
    torch._dynamo.reset()
    fn = ours if name.startswith("fastwm") else theirs
    if name.endswith("compiled"):
        fn = torch.compile(fn, fullgraph=True, dynamic=False)
    tensors = [torch.randn(batch, n).requires_grad_(backward) for n in (width // 4, width)]
    group = f"block gru core {width}, B = {batch}, {'forward+backward' if backward else 'forward'}"
    compare(measure, group, name, fn, theirs, theirs, tensors)
