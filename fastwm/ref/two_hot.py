import torch
from torch import Tensor
from torch.nn import functional as F


def two_hot_loss(
    logits: Tensor, target: Tensor, bins: Tensor, second_target: Tensor | None = None, second_weight: float = 1.0
) -> Tensor:
    """Cross-entropy of the two-hot encoded target: see `fastwm.ops.two_hot_loss`."""
    log_probs = F.log_softmax(_wide(logits), -1)
    bins = bins.to(log_probs.dtype).contiguous()
    loss = _cross_entropy(log_probs, target, bins)
    if second_target is not None:
        loss = loss + second_weight * _cross_entropy(log_probs, second_target, bins)
    return loss


def _cross_entropy(log_probs: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    target = target.detach().to(bins.dtype)
    last = len(bins) - 1
    count = torch.searchsorted(bins, target.contiguous(), right=True)  # bins <= target
    below, above = (count - 1).clamp(0, last), count.clamp(0, last)
    low, high = bins[below], bins[above]
    weight = torch.where(above > below, (target - low) / torch.where(above > below, high - low, 1), 0)
    weight = torch.where(target.isnan(), target, weight)
    log_below, log_above = (log_probs.gather(-1, k[..., None])[..., 0] for k in (below, above))
    return -((1 - weight) * log_below + weight * log_above)


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value, mirrored bins added first: see `fastwm.ops.two_hot_mean`."""
    weighted = F.softmax(_wide(logits), -1) * bins
    half = len(bins) // 2
    return (weighted[..., :half].flip(-1) + weighted[..., half + 1 :]).sum(-1) + weighted[..., half]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
