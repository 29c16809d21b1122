import math

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, check_tensor, select, vmap_rows


def mdn_nll(logits: Tensor, mean: Tensor, log_std: Tensor, value: Tensor) -> Tensor:
    """The negative log-likelihood of numbers under Gaussian mixtures, in nats, in one pass each way.

        nll = -log sum_k softmax(logits)_k N(value; mean_k, exp(log_std_k))

    The shape of `logits` says which of two models it is. Their losses are not comparable.

    * `[..., Z, K]`: each number has a mixture of its own, as in the original World Models. `nll` is `[..., Z]`;
      the original loss is its mean over everything, latent dimensions included.
    * `[..., K]`: joint; a component is drawn once for the whole vector, and its density is the product over
      the Z dimensions. `nll` is `[...]`, a sum over the dimensions by nature.

    Args:
        logits: mixture weights before the softmax; a constant added to all changes nothing.
        mean: `[..., Z, K]`, Z >= 1, K >= 1. Slices of one network output, such as `out.unflatten(-1,
            (Z, 3, K)).unbind(-2)`, are read where they lie.
        log_std: `[..., Z, K]`, neither clamped nor floored.
        value: `[..., Z]`.

    Returns:
        `[..., Z]`, or `[...]` where joint, contiguous. It may be negative: it is a density's. Differentiable in
        all four arguments: once, or any number of times with the `ref` backend.

    All in one dtype: float32 or float64; bfloat16 and float16 are raised to float32, as is the result.

    Raises:
        ValueError: shapes do not fit, dtypes or devices differ, or a tensor is not floating-point.

    Source: Ha and Schmidhuber, "World Models", appendix A.2; Bishop, "Mixture density networks"; the joint form
    is that of ctallec/world-models
    """
    logits, mean, log_std, value = _at_least_float32(logits, mean, log_std, value)
    _check_mixture(logits, mean, log_std)
    check_tensor("value", value, mean.shape[:-1], mean, mean.dtype)
    library = select(mean)
    if library is None:
        return ref.mdn_nll(logits, mean, log_std, value)
    return _nll(library, logits, mean, log_std, value)


@torch.no_grad()
def mdn_sample(
    logits: Tensor,
    mean: Tensor,
    log_std: Tensor,
    temperature: float = 1.0,
    uniform: Tensor | None = None,
    normal: Tensor | None = None,
) -> Tensor:
    """A sample of Gaussian mixtures at a temperature.

        k ~ softmax(logits / temperature),   sample = mean_k + exp(log_std_k) * sqrt(temperature) * normal

    The component is the first whose cumulated weight, summed in the order of the classes, exceeds
    `uniform`; one of weight zero is never drawn. With `logits` `[..., Z, K]` every number draws its own
    component, with `[..., K]` (joint) all Z numbers share one: see `mdn_nll`.

    Args:
        logits, mean, log_std: as in `mdn_nll`.
        temperature: 1 is the model itself; lower is more certain, higher more random. The standard deviation is
            multiplied by its square root; the means stay.
        uniform: numbers in [0, 1), `[..., Z]`, or `[...]` where joint. Drawn by torch if not given.
        normal: standard normal numbers, `[..., Z]`. Drawn by torch, after `uniform`, if not given.

    Returns:
        `[..., Z]`, contiguous, in the parameters' dtype, float32 at least. Without a gradient: the choice of a
        component has none, and through the chosen one alone it would be biased.

    Raises:
        ValueError: as `mdn_nll`, and for a temperature that is not a positive finite number.

    Source: Ha and Schmidhuber, "World Models", section 4.3 (Doom) and their code
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected a positive, finite temperature, got {temperature}")
    logits, mean, log_std = _at_least_float32(logits, mean, log_std)
    _check_mixture(logits, mean, log_std)
    if uniform is None:
        uniform = torch.rand(logits.shape[:-1], dtype=mean.dtype, device=mean.device)
    if normal is None:
        normal = torch.randn(mean.shape[:-1], dtype=mean.dtype, device=mean.device)
    uniform, normal = _at_least_float32(uniform, normal)
    check_tensor("uniform", uniform, logits.shape[:-1], mean, mean.dtype)
    check_tensor("normal", normal, mean.shape[:-1], mean, mean.dtype)
    library = select(mean)
    if library is None:
        return ref.mdn_sample(logits, mean, log_std, uniform, normal, temperature)
    return _sample(library, logits, mean, log_std, uniform, normal, float(temperature))


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in tensors)


def _check_mixture(logits: Tensor, mean: Tensor, log_std: Tensor) -> None:
    if not mean.dtype.is_floating_point:
        raise ValueError(f"expected floating-point tensors, got mean of {mean.dtype}")
    shape = mean.shape
    if mean.dim() < 2 or shape[-2] == 0 or shape[-1] == 0:
        raise ValueError(f"expected mean [..., Z, K] with Z >= 1 and K >= 1, got {list(shape)}")
    if logits.shape != shape and logits.shape != (*shape[:-2], shape[-1]):
        raise ValueError(f"logits {list(logits.shape)} are neither [..., Z, K] nor [..., K] of mean {list(shape)}")
    check_tensor("logits", logits, logits.shape, mean, mean.dtype)
    check_tensor("log_std", log_std, shape, mean, mean.dtype)


_sample = Operator("mdn_sample", vmap_rows)
_nll = Operator("mdn_nll", vmap_rows)
