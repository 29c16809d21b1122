import torch
from torch import Tensor
from torch.nn import functional as F

# One term for each sign, so that the derivative at zero is 1; that of sign(x) * log1p(|x|) would come out as 0.


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)`: see `fastwm.ops.symlog`."""
    return torch.log1p(x.clamp(min=0)) - torch.log1p(F.relu(-x))


def symexp(x: Tensor) -> Tensor:
    """`sign(x) (e^|x| - 1)`: see `fastwm.ops.symexp`."""
    return torch.expm1(x.clamp(min=0)) - torch.expm1(F.relu(-x))
