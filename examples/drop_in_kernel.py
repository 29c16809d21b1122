"""Drop one kernel into existing code: Dreamer's lambda-returns and two-hot loss, before and after.

    python examples/drop_in_kernel.py

Needs `pip install fastwm` alone. Prints the largest difference between both versions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ops
from fastwm.nn import symexp_bins


def lambda_return_before(reward: Tensor, cont: Tensor, value: Tensor, lam: float) -> Tensor:
    """The usual loop over time: reward, cont, value [T, B] of the next state -> returns [T, B]."""
    last, returns = value[-1], []
    for t in reversed(range(len(reward))):
        last = reward[t] + cont[t] * ((1 - lam) * value[t] + lam * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def two_hot_loss_before(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy of a target [...] that is spread over its two neighbouring bins; logits [..., K]."""
    above = torch.searchsorted(bins, target).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    weight = ((target - low) / (high - low)).clamp(0, 1)
    spread = torch.zeros_like(logits).scatter(-1, above[..., None], weight[..., None])
    spread = spread.scatter_add(-1, above[..., None] - 1, 1 - weight[..., None])
    return -(spread * F.log_softmax(logits, -1)).sum(-1)


def main() -> None:
    torch.manual_seed(0)
    reward, cont, value = torch.rand(3, 15, 1024).unbind()  # [T, B]
    logits, bins = torch.randn(15, 1024, 255, requires_grad=True), symexp_bins(255)

    before = lambda_return_before(reward, cont, value, 0.95)
    after = ops.lambda_return(reward, cont, value, 0.95)
    print(f"lambda_return: largest difference {(before - after).abs().max():.1e}")

    losses = [two_hot_loss_before(logits, before, bins), ops.two_hot_loss(logits, after, bins)]
    grads = [torch.autograd.grad(loss.mean(), logits)[0] for loss in losses]
    print(f"two_hot_loss: largest difference {(losses[0] - losses[1]).abs().max():.1e}, "
          f"of the gradient {(grads[0] - grads[1]).abs().max():.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
