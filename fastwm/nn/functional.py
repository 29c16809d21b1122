"""Small functions of the field: symlog, symexp and the two-hot bins."""

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)`: compresses large magnitudes, is the identity near zero."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (exp(|x|) - 1)`, the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symexp_bins(count: int = 255) -> Tensor:
    """`count` (odd) bins in raw units, spaced evenly in symlog space over [-20, 20] and exactly symmetric."""
    if count % 2 == 0 or count < 3:
        raise ValueError(f"symexp_bins: the count must be odd and at least 3, got {count}")
    half = symexp(torch.linspace(-20, 0, count // 2 + 1))
    return torch.cat([half, -half[:-1].flip(0)])
