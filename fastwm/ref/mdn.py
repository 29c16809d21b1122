import math

import torch
from torch import Tensor


def mdn_nll(logits: Tensor, mean: Tensor, log_std: Tensor, value: Tensor) -> Tensor:
    """The negative log-likelihood of a mixture: see `fastwm.ops.mdn_nll`. Differentiable any number of times."""
    deviation = (value.unsqueeze(-1) - mean) * (-log_std).exp()  # [..., Z, K]
    log_density = -0.5 * deviation.square() - log_std - 0.5 * math.log(2 * math.pi)
    if logits.dim() < mean.dim():  # a component is a density of the whole vector
        log_density = log_density.sum(-2)
    return -(logits.log_softmax(-1) + log_density).logsumexp(-1)


@torch.no_grad()
def mdn_sample(
    logits: Tensor, mean: Tensor, log_std: Tensor, uniform: Tensor, normal: Tensor, temperature: float = 1.0
) -> Tensor:
    """A sample of a mixture at a temperature: see `fastwm.ops.mdn_sample`."""
    weight = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    cumulated = weight.cumsum(-1)
    below_one = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps / 2)
    threshold = below_one.unsqueeze(-1) * cumulated[..., -1:]
    index = (cumulated[..., :-1] <= threshold).sum(-1, keepdim=True)  # [..., Z or nothing, 1]
    nothing = threshold - threshold  # 0, or NaN where no component can be drawn
    if logits.dim() < mean.dim():
        index, nothing = index.unsqueeze(-2).expand(*mean.shape[:-1], 1), nothing.unsqueeze(-2)
    mean, log_std = (mean.gather(-1, index) + nothing).squeeze(-1), log_std.gather(-1, index).squeeze(-1)
    return mean + log_std.exp() * math.sqrt(temperature) * normal
