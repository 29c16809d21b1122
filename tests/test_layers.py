"""Layers whose arithmetic is not what their definition says at first sight."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional as F
from torch.testing import assert_close

from fastwm.nn import MLP, Decoder, UpsampleConv2d
from fastwm.nn.spaces import as_dict
from fastwm.ops import DenseWeights, LayerWeights, LinearWeights, MLPWeights, mlp


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (4, 5)])
def test_upsampling_convolution_is_what_its_name_says(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = UpsampleConv2d(3, 4, kernel).double()
    assert layer.bias is not None and set(layer.state_dict()) == {"weight", "bias"}
    layer.bias.data.normal_()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours = layer(x)
    theirs = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding="same")
    assert_close(ours, theirs)
    inputs = (x, layer.weight, layer.bias)
    grad = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad))


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
def test_an_mlp_takes_layers_of_unlike_widths(norm: str) -> None:
    """Plain PyTorch computes them, as `nn.functional` would."""
    torch.manual_seed(0)
    x, onehot = (torch.randn(3, 5, n, dtype=torch.float64, requires_grad=True) for n in (4, 6))
    layers: list[Any] = []
    for i, o in ((10, 9), (9, 3), (3, 17)):
        weight, *vectors = (
            torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((o, i), *[(o,)] * 3)
        )
        kept = {"rms": 2, "layer": 3, "none": 1}[norm]
        layers.append((DenseWeights if norm == "rms" else LayerWeights)(weight, *vectors[:kept]))
    out = LinearWeights(
        torch.randn(2, 17, dtype=torch.float64, requires_grad=True), torch.randn(2, dtype=torch.float64)
    )
    ours = mlp(x, MLPWeights(tuple(layers), out, "silu" if norm == "rms" else "elu"), onehot, 1e-3)
    theirs = torch.cat([x, onehot], -1)
    for layer in layers:
        theirs, width = F.linear(theirs, *layer[:2]), len(layer[1])
        if norm == "rms":
            theirs = F.silu(F.rms_norm(theirs, (width,), layer[2], 1e-3))
        else:
            theirs = F.elu(F.layer_norm(theirs, (width,), *layer[2:], 1e-3) if norm == "layer" else theirs)
    theirs = F.linear(theirs, *out)
    assert_close(ours, theirs)
    inputs = (x, onehot, *(part for layer in layers for part in layer if part is not None))
    grad = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad))


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_an_mlp_is_its_layers(layers: int) -> None:
    torch.manual_seed(0)
    mlp = MLP(9, 24, layers).double()
    x = torch.randn(100, 3, 9, dtype=torch.float64, requires_grad=True)
    ours, theirs = mlp(x), x
    for layer in mlp:
        theirs = layer(theirs)
    assert_close(ours, theirs)
    inputs, grad = (x, *mlp.parameters()), torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad))


def test_vectors_are_decoded_by_an_mlp_and_a_layer_each() -> None:
    torch.manual_seed(0)
    space = as_dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)}, "obs")
    decoder = Decoder(space, 16, 12, 24, 2, 8, (1,), 3, 2).double()
    deter = torch.randn(100, 3, 16, dtype=torch.float64, requires_grad=True)
    stoch = torch.randn(100, 3, 12, dtype=torch.float64, requires_grad=True)
    out = decoder(deter, stoch)
    ours = torch.cat([out["a"].mean, out["b"].logits], -1)
    x = decoder.mlp(torch.cat([stoch, deter], -1))
    theirs = torch.cat([head(x) for head in decoder.heads], -1).float()
    assert_close(ours, theirs)
    inputs, grad = (deter, stoch, *decoder.parameters()), torch.randn_like(ours)
    assert_close(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), rtol=1e-5, atol=1e-6
    )
