import torch
from torch import Tensor


def lambda_return(reward: Tensor, cont: Tensor, next_value: Tensor, lam: float | Tensor = 0.95) -> Tensor:
    """The lambda-return: see `fastwm.ops.lambda_return`. Differentiable any number of times."""
    lams = lam.expand_as(reward) if isinstance(lam, Tensor) else [lam] * len(reward)
    ret, rets = next_value[-1], []
    for t in reversed(range(len(reward))):
        ret = reward[t] + cont[t] * ((1 - lams[t]) * next_value[t] + lams[t] * ret)
        rets.append(ret)
    return torch.stack(rets[::-1])  # [T, ...]
