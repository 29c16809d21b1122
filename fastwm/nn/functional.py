"""The bins of the two-hot heads."""

import torch
from torch import Tensor


def symexp_bins(count: int = 255) -> Tensor:
    """`count` (odd) bins in raw units, spaced evenly in symlog space over [-20, 20] and exactly symmetric."""
    if count % 2 == 0 or count < 3:
        raise ValueError(f"symexp_bins: the count must be odd and at least 3, got {count}")
    x = torch.linspace(-20, 0, count // 2 + 1)
    half = x.sign() * torch.expm1(x.abs())  # not `ops.symexp`: the same bits on every backend
    return torch.cat([half, -half[:-1].flip(0)])
