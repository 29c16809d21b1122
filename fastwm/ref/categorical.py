import torch
from torch import Tensor
from torch.nn import functional as F


def straight_through_categorical(
    logits: Tensor, uniform: Tensor, unimix: float = 0.01, estimator: str = "straight_through"
) -> tuple[Tensor, Tensor, Tensor]:
    """One-hot samples, their class indices and the log-probabilities: see `fastwm.ops`."""
    log_prob = _log_probs(logits, unimix)
    if estimator == "gumbel":
        limits = torch.finfo(log_prob.dtype)
        gumbel = -torch.log(-torch.log(uniform.clamp(limits.tiny, 1 - limits.eps / 2)))
        index = (log_prob + gumbel).argmax(-1)  # the first of equals
        soft = F.softmax(log_prob + gumbel, -1)
    else:
        soft = _probs(logits, unimix)
        index = _inverse_cdf(soft.detach(), uniform)
    return *_one_hot(index, soft, uniform.sum(-1) if estimator == "gumbel" else uniform), log_prob


def _probs(logits: Tensor, unimix: float) -> Tensor:
    """p = (1 - unimix) softmax(logits) + unimix / C, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (1 - unimix) * F.softmax(logits, -1) + unimix / logits.shape[-1]


def _log_probs(logits: Tensor, unimix: float) -> Tensor:
    if unimix:
        return torch.log(_probs(logits, unimix))
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def _inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """How many classes have cdf <= uniform, the cdf summed in class order."""
    cdf, index = torch.zeros_like(uniform), torch.zeros_like(uniform, dtype=torch.int64)
    for p in probs.unbind(-1)[:-1]:
        cdf = cdf + p
        index = index + (cdf <= uniform)
    return _last_drawable(index, probs)


def _last_drawable(index: Tensor, probs: Tensor) -> Tensor:
    """The index, or where it is the last class the last one of weight above 0, which catches what rounding leaves."""
    classes = torch.arange(probs.shape[-1], device=probs.device)
    last = ((probs >= torch.finfo(probs.dtype).tiny) * classes).amax(-1)
    return torch.where(index == len(classes) - 1, last, index)


def _one_hot(index: Tensor, soft: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot with the gradient of `soft`, and the index; NaN and 0 where probabilities or noise are NaN."""
    nothing = soft.detach().sum(-1) + uniform
    nothing = nothing - nothing  # 0 or NaN
    index = torch.where(nothing == 0, index, 0)
    onehot = F.one_hot(index, soft.shape[-1]).to(soft.dtype) + nothing[..., None]
    return onehot + (soft - soft.detach()), index


def categorical_kl(
    post_logits: Tensor, prior_logits: Tensor, unimix: float = 0.01, free_nats: float = 1.0
) -> tuple[Tensor, Tensor]:
    """KL(sg(post) || prior) and KL(post || sg(prior)), summed and held above `free_nats`: see `fastwm.ops`."""
    dyn = _kl(post_logits.detach(), prior_logits, unimix)
    rep = _kl(post_logits, prior_logits.detach(), unimix)
    return _at_least(dyn, free_nats), _at_least(rep, free_nats)


def _at_least(x: Tensor, low: float) -> Tensor:
    return torch.where(x <= low, low, x)


def _kl(post: Tensor, prior: Tensor, unimix: float) -> Tensor:
    return _mean(_probs(post, unimix), _log_probs(post, unimix) - _log_probs(prior, unimix)).sum(-1)


def categorical_entropy(logits: Tensor, unimix: float = 0.01) -> Tensor:
    """Entropy of each categorical: see `fastwm.ops`."""
    return -_mean(_probs(logits, unimix), _log_probs(logits, unimix))


def _mean(probs: Tensor, log: Tensor) -> Tensor:
    """The mean of a logarithm over the classes, where 0 ln 0 = 0."""
    return (probs * torch.where(probs == 0, 0, log)).sum(-1)
