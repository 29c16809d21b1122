"""Running scale of the returns."""

import math

import torch
from torch import Tensor, nn


class PercentileNormalizer(nn.Module):
    """Scale `S = max(limit, hi - lo)` from moving averages of the 5th and 95th percentile of all returns.

    The averages start at zero and are not debiased; percentiles interpolate linearly.
    """

    lo: Tensor
    hi: Tensor

    def __init__(self, rate: float = 0.01, limit: float = 1.0, low: float = 0.05, high: float = 0.95):
        super().__init__()
        self.rate, self.limit, self.low, self.high = rate, limit, low, high
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Take in all of `x` and return the new scale, a scalar tensor."""
        values = x.flatten().float()
        self.lo.lerp_(percentile(values, self.low), self.rate)
        self.hi.lerp_(percentile(values, self.high), self.rate)
        return self.scale

    @property
    def scale(self) -> Tensor:
        return (self.hi - self.lo).clamp(min=self.limit)


def percentile(x: Tensor, share: float) -> Tensor:
    """`torch.quantile(x, share)` of a vector, which sorts no more than the nearer end."""
    rank = share * (len(x) - 1)
    below, above = math.floor(rank), math.ceil(rank)
    if share < 0.5:
        tail = x.topk(above + 1, largest=False).values
        low, high = tail[below], tail[above]
    else:
        tail = x.topk(len(x) - below).values
        low, high = tail[len(x) - 1 - below], tail[len(x) - 1 - above]
    return torch.lerp(low, high, rank - below)
