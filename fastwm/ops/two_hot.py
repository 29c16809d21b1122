import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, check_tensor, select, vmap_loop
from fastwm.ops._declared import wide


def two_hot_loss(
    logits: Tensor, target: Tensor, bins: Tensor, second_target: Tensor | None = None, second_weight: float = 1.0
) -> Tensor:
    """Cross-entropy between a categorical over bins and the two-hot encoding of a scalar, in one pass.

        loss = CE(target) + second_weight * CE(second_target)
        CE(y) = logsumexp(logits) - (1 - w) logits[i] - w logits[i+1],   w = (y - bins[i]) / (bins[i+1] - bins[i])

    where `bins[i] <= y < bins[i+1]`; outside the bins all weight is on the end bin. DreamerV3's critic is drawn to
    its return and to the slow critic's value: the second target costs no second softmax.

    Args:
        logits: `[..., K]`, K odd. float32, float64 or bfloat16 (computed in float32, under autocast too); other
            floating dtypes are served by plain PyTorch.
        target: `[...]`, in the bins' units. A NaN makes its row's loss and gradient NaN. No gradient.
        bins: `[K]`, ascending (not checked). No gradient.
        second_target: like `target`.
        second_weight: the second cross-entropy's factor.

    Returns:
        `[...]`, float32 (float64 where `logits` is). Differentiable in `logits`: once, or any number of times
        with the `ref` backend.

    Raises:
        ValueError: K is even; a shape or device does not fit `logits`; a tensor is not floating-point.

    Source: Hafner et al., "Mastering Diverse Domains through World Models"; the official code's symexp_twohot
    """
    bins = _check_bins(logits, bins)
    target = _check("target", target, logits, logits.shape[:-1])
    if second_target is not None:
        second_target = _check("second_target", second_target, logits, logits.shape[:-1])
    library = select(logits)
    if library is None:
        return ref.two_hot_loss(logits, target, bins, second_target, second_weight)
    loss: Tensor = _loss(library, logits, target, bins, second_target, float(second_weight))
    return loss


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """The expected value of a categorical over bins, exactly zero where logits and bins are symmetric.

        mean = sum over k of softmax(logits)[k] bins[k],   taken over mirrored pairs of bins

    Summed from left to right, the uniform categorical over DreamerV3's bins (up to 5e8) would predict -0.25.

    Args:
        logits: `[..., K]`, K odd, as in `two_hot_loss`.
        bins: `[K]`. No gradient.

    Returns:
        `[...]`, float32 (float64 where `logits` is). Differentiable in `logits`, as in `two_hot_loss`.

    Raises:
        ValueError: as in `two_hot_loss`.

    Source: the official DreamerV3 code, outs.TwoHot.pred
    """
    bins = _check_bins(logits, bins)
    library = select(logits)
    if library is None:
        return ref.two_hot_mean(logits, bins)
    mean: Tensor = _mean(library, logits, bins)
    return mean


def _check_bins(logits: Tensor, bins: Tensor) -> Tensor:
    if logits.dim() == 0 or logits.shape[-1] % 2 == 0 or not logits.dtype.is_floating_point:
        raise ValueError(f"expected floating-point logits [..., K] with K odd, got {list(logits.shape)} {logits.dtype}")
    return _check("bins", bins, logits, logits.shape[-1:])


def _check(name: str, x: Tensor, logits: Tensor, shape: torch.Size) -> Tensor:
    check_tensor(name, x, shape, logits)
    x, dtype = x.detach() if x.requires_grad else x, wide(logits.dtype)
    return x if x.dtype == dtype else x.to(dtype)


_loss = Operator("two_hot_loss", vmap_loop)
_mean = Operator("two_hot_mean", vmap_loop)
