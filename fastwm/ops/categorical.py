from typing import NamedTuple

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Library, Operator, check_alike, check_tensor, select, vmap_rows
from fastwm.ops._declared import wide

_MOST_CLASSES = 4096  # of the kernels; plain PyTorch serves more
_ESTIMATORS = ("straight_through", "gumbel")


class CategoricalSample(NamedTuple):
    sample: Tensor  # [..., C], exactly 0 or 1
    index: Tensor  # type: ignore[assignment]  # [...], int64; shadows tuple.index
    log_prob: Tensor  # [..., C]


def straight_through_categorical(
    logits: Tensor, uniform: Tensor | None = None, unimix: float = 0.01, estimator: str = "straight_through"
) -> CategoricalSample:
    """One-hot samples of categoricals mixed with the uniform distribution, with a gradient.

        p = (1 - unimix) softmax(logits) + unimix / C
        index = how many k < C - 1 have p_0 + ... + p_k <= uniform; the last class of weight above 0 catches the rest
        dL/dp = dL/dsample          (the sample passes for p backward)

    Args:
        logits: `[..., C]`, float32, float64 or bfloat16 (computed in float32); other floating dtypes, and more
            than 4096 classes, are served by plain PyTorch.
        uniform: `[...]` in [0, 1), one number a sample; drawn by `torch.rand` if not given. No gradient.
        unimix: share of the uniform distribution, in [0, 1); 0 is the plain softmax.
        estimator: `"straight_through"`, or `"gumbel"`: the hard Gumbel-softmax at temperature 1 on ln p, where
            `uniform` is `[..., C]`, the largest of ln p - ln(-ln(uniform)) is drawn, and the gradient passes
            through the softmax of that sum.

    Returns:
        `sample` `[..., C]`, exactly one-hot; `index` `[...]`, int64; `log_prob` = ln p `[..., C]`. float32, or
        float64 for float64 logits. `sample` and `log_prob` are differentiable in `logits`: once, or any number
        of times with the `ref` backend. Where a row's logits or noise are NaN, so are its sample and (of the logits)
        its `log_prob`, and the index is 0.

    Raises:
        ValueError: C = 0; `logits` is not floating-point; `uniform` has another shape or device, is not
            floating-point or requires grad; `unimix` is outside [0, 1); `estimator` is unknown.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons"; Hafner et al.,
    "Mastering Diverse Domains through World Models"; Jang et al., "Categorical Reparameterization with
    Gumbel-Softmax"
    """
    _check(logits, unimix, 1)
    if estimator not in _ESTIMATORS:
        raise ValueError(f"unknown estimator '{estimator}'; the estimators are {', '.join(_ESTIMATORS)}")
    gumbel = estimator == "gumbel"
    dtype = wide(logits.dtype)
    shape = logits.shape if gumbel else logits.shape[:-1]
    if uniform is None:
        uniform = torch.rand(shape, dtype=dtype, device=logits.device)
    else:
        uniform = _check_uniform(uniform, shape, logits).to(dtype)
    library = _select(logits)
    if library is None:
        return CategoricalSample(*ref.straight_through_categorical(logits, uniform, unimix, estimator))
    return CategoricalSample(*_sample(library, logits, uniform, float(unimix), gumbel))


def categorical_kl(
    post_logits: Tensor, prior_logits: Tensor, unimix: float = 0.01, free_nats: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The two sides of DreamerV3's KL between posterior and prior, each summed over the categoricals.

        dyn = max(free_nats, KL(sg(post) || prior))          trains the prior
        rep = max(free_nats, KL(post || sg(prior)))          trains the posterior

    with both distributions mixed: p = (1 - unimix) softmax(logits) + unimix / C. Where the maximum picks
    `free_nats`, the gradient is exactly zero.

    Args:
        post_logits: `[..., S, C]`: S categoricals of C classes. Dtypes as in `straight_through_categorical`.
        prior_logits: like `post_logits`.
        unimix: share of the uniform distribution, in [0, 1).
        free_nats: in nats, for each sum over S.

    Returns:
        `dyn`, differentiable in `prior_logits`, and `rep`, in `post_logits`: `[...]`, of equal values, float32,
        or float64 for float64 logits.

    Raises:
        ValueError: fewer than two dimensions, S = 0 or C = 0; shapes, dtypes or devices differ; not
            floating-point; `unimix` is outside [0, 1).

    Source: Hafner et al., "Mastering Diverse Domains through World Models", eq. 5
    """
    _check(post_logits, unimix, 2)
    check_alike(post_logits=post_logits, prior_logits=prior_logits)
    library = _select(post_logits)
    if library is None:
        return ref.categorical_kl(post_logits, prior_logits, unimix, free_nats)
    dyn, rep = _kl(library, post_logits, prior_logits, float(unimix), float(free_nats))
    return dyn, rep


def balanced_categorical_kl(
    post_logits: Tensor,
    prior_logits: Tensor,
    balance: float = 0.8,
    free_nats: float = 0.0,
    free_avg: bool = True,
    unimix: float = 0.0,
) -> Tensor:
    """DreamerV2's KL loss: `balance` of it trains the prior, the rest the posterior.

        balance max(mean KL(sg(post) || prior), free_nats) + (1 - balance) max(mean KL(post || sg(prior)), free_nats)

    Args:
        post_logits, prior_logits, unimix: as in `categorical_kl`.
        balance: weight of the side that trains the prior.
        free_nats: in nats, for a KL summed over S.
        free_avg: hold the batch's mean above `free_nats`; else each KL, and then average.

    Returns:
        The loss, a scalar in float32, or float64 for float64 logits.

    Raises:
        ValueError: as `categorical_kl`.

    Source: Hafner et al., "Mastering Atari with Discrete World Models", algorithm 2
    """
    dyn, rep = categorical_kl(post_logits, prior_logits, unimix, 0.0 if free_avg else free_nats)
    dyn, rep = dyn.mean(), rep.mean()
    if free_avg:
        dyn, rep = (torch.where(kl <= free_nats, free_nats, kl) for kl in (dyn, rep))  # NaN keeps its gradient
    return balance * dyn + (1 - balance) * rep


def categorical_entropy(logits: Tensor, unimix: float = 0.01) -> Tensor:
    """Entropy of categoricals mixed with the uniform distribution, in nats.

        H = -sum_k p_k ln p_k,   p = (1 - unimix) softmax(logits) + unimix / C,   0 ln 0 = 0

    Args:
        logits: `[..., C]`. Dtypes as in `straight_through_categorical`.
        unimix: share of the uniform distribution, in [0, 1).

    Returns:
        `[...]`, float32, or float64 for float64 logits. Differentiable: once, or any number of times with the
        `ref` backend.

    Raises:
        ValueError: C = 0; not floating-point; `unimix` is outside [0, 1).
    """
    _check(logits, unimix, 1)
    library = _select(logits)
    if library is None:
        return ref.categorical_entropy(logits, unimix)
    entropy: Tensor = _entropy(library, logits, float(unimix))
    return entropy


def _check(logits: Tensor, unimix: float, dims: int) -> None:
    if not logits.dtype.is_floating_point:
        raise ValueError(f"expected floating-point logits, got {logits.dtype}")
    if logits.dim() < dims or 0 in logits.shape[-dims:]:
        wanted = "[..., S, C] with S, C >= 1" if dims == 2 else "[..., C] with C >= 1"
        raise ValueError(f"expected logits {wanted}, got {list(logits.shape)}")
    if not 0 <= unimix < 1:
        raise ValueError(f"expected unimix within [0, 1), got {unimix}")


def _check_uniform(uniform: Tensor, shape: torch.Size, logits: Tensor) -> Tensor:
    check_tensor("uniform", uniform, shape, logits)
    if uniform.requires_grad:
        raise ValueError("uniform requires grad, but a sample has no gradient with respect to it: detach it")
    return uniform


def _select(logits: Tensor) -> Library | None:
    return select(logits) if logits.shape[-1] <= _MOST_CLASSES else None


_sample = Operator("straight_through_categorical", vmap_rows)
_kl = Operator("categorical_kl", vmap_rows)
_entropy = Operator("categorical_entropy", vmap_rows)
