"""Layers whose arithmetic is not what their definition says at first sight."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastwm.nn import UpsampleConv2d


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
