"""Running scale of the returns."""

import torch
from torch import Tensor, nn


class PercentileNormalizer(nn.Module):
    """Scale `S = max(limit, hi - lo)` from moving averages of the 5th and 95th percentile of all returns.

    The averages start at zero and are not debiased; percentiles interpolate linearly.
    """

    lo: Tensor
    hi: Tensor
    quantiles: Tensor

    def __init__(self, rate: float = 0.01, limit: float = 1.0, low: float = 0.05, high: float = 0.95):
        super().__init__()
        self.rate, self.limit = rate, limit
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))
        self.register_buffer("quantiles", torch.tensor([low, high]), persistent=False)

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Take in all of `x` and return the new scale, a scalar tensor."""
        lo, hi = torch.quantile(x.flatten().float(), self.quantiles)
        self.lo.lerp_(lo, self.rate)
        self.hi.lerp_(hi, self.rate)
        return self.scale

    @property
    def scale(self) -> Tensor:
        return (self.hi - self.lo).clamp(min=self.limit)
