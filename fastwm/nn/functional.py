"""The bins of the two-hot heads."""

import torch
from torch import Tensor

from fastwm import ref


def symexp_bins(count: int = 255) -> Tensor:
    """`count` (odd) bins in raw units, spaced evenly in symlog space over [-20, 20] and exactly symmetric."""
    if count % 2 == 0 or count < 3:
        raise ValueError(f"symexp_bins: the count must be odd and at least 3, got {count}")
    half = ref.symexp(torch.linspace(-20, 0, count // 2 + 1))  # a constant: the same bits whatever backend is forced
    return torch.cat([half, -half[:-1].flip(0)])
