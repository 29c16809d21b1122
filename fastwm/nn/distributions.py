"""What the heads predict. Noise is an argument everywhere, so that a sample can be replayed."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.nn.functional import symexp, symlog


class Categorical:
    """Categorical over the last axis of `logits` [..., C], optionally mixed with `unimix` of the uniform."""

    def __init__(self, logits: Tensor, unimix: float = 0.0):
        logits = logits.float()
        if unimix:
            probs = (1 - unimix) * F.softmax(logits, -1) + unimix / logits.shape[-1]
            self.log_probs = torch.log(probs)
        else:
            self.log_probs = F.log_softmax(logits, -1)

    @property
    def probs(self) -> Tensor:
        return torch.exp(self.log_probs)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of the uniform numbers that `sample` takes."""
        return self.log_probs.shape[:-1]

    def noise(self) -> Tensor:
        return torch.rand(self.event_shape, device=self.log_probs.device)

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """Class index int64 [...] by the inverse CDF, summed in class order; the last class catches the rest."""
        uniform = self.noise() if uniform is None else uniform
        with torch.no_grad():
            cdf = self.probs.cumsum(-1)[..., :-1]
            return (cdf <= uniform[..., None]).sum(-1)

    def onehot(self, uniform: Tensor | None = None) -> Tensor:
        """One-hot sample [..., C]; exactly 0/1 forward, the gradient of the (mixed) probabilities backward."""
        index, probs = self.sample(uniform), self.probs
        return F.one_hot(index, probs.shape[-1]).to(probs.dtype) + (probs - probs.detach())

    def log_prob(self, index: Tensor) -> Tensor:
        return self.log_probs.gather(-1, index.long()[..., None])[..., 0]

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """KL(self || other) [...]."""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)

    def loss(self, target: Tensor) -> Tensor:
        return -self.log_prob(target)

    @property
    def prediction(self) -> Tensor:
        """The most likely class [...]."""
        return self.log_probs.argmax(-1)


class BoundedNormal:
    """Normal with `mean = tanh(raw)` and `std = (hi - lo) sigmoid(raw_std + 2) + lo`; the sample is not clipped."""

    def __init__(self, mean: Tensor, std: Tensor, lo: float = 0.1, hi: float = 1.0):
        self.mean = torch.tanh(mean.float())
        self.std = (hi - lo) * torch.sigmoid(std.float() + 2) + lo

    def noise(self) -> Tensor:
        return torch.randn_like(self.mean)

    def sample(self, normal: Tensor | None = None) -> Tensor:
        normal = self.noise() if normal is None else normal
        return self.mean + self.std * normal

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * ((value - self.mean) / self.std) ** 2 - self.std.log() - 0.5 * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        return self.std.log() + 0.5 * math.log(2 * math.pi * math.e)


class Bernoulli:
    """Binary outcome from a logit; the target may be soft."""

    def __init__(self, logit: Tensor):
        self.logit = logit.float()

    @property
    def prob(self) -> Tensor:
        return torch.sigmoid(self.logit)

    def loss(self, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logit, target, reduction="none")


class TwoHot:
    """A scalar predicted as a categorical over `bins` [K] in raw units (DreamerV3's symexp two-hot)."""

    def __init__(self, logits: Tensor, bins: Tensor):
        self.logits = logits.float()
        self.bins = bins
        self.log_probs = F.log_softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """Expectation [...]; mirrored bins are added pairwise, so that uniform logits give exactly zero."""
        weighted = torch.exp(self.log_probs) * self.bins
        half = len(self.bins) // 2
        return (weighted[..., :half].flip(-1) + weighted[..., half + 1 :]).sum(-1) + weighted[..., half]

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbouring bins (`below`, `above`) of a raw target [...] and the weight of `above`."""
        last = len(self.bins) - 1
        count = torch.searchsorted(self.bins, target.contiguous(), right=True)  # bins <= target
        below, above = (count - 1).clamp(0, last), count.clamp(0, last)
        low, high = self.bins[below], self.bins[above]
        gap = torch.where(above > below, high - low, 1.0)
        return below, above, torch.where(above > below, (target - low) / gap, 0.0)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy of the two-hot encoded `target` [...]; the target carries no gradient."""
        below, above, weight = self.encode(target.detach().float())
        log_below = self.log_probs.gather(-1, below[..., None])[..., 0]
        log_above = self.log_probs.gather(-1, above[..., None])[..., 0]
        return -((1 - weight) * log_below + weight * log_above)


class SquaredError:
    """`(mean - target)^2` summed over the last `dims` axes, without a factor of one half."""

    def __init__(self, mean: Tensor, dims: int):
        self.mean = mean.float()
        self.dims = dims

    @property
    def prediction(self) -> Tensor:
        """The mean in the target's units."""
        return self.mean

    def loss(self, target: Tensor) -> Tensor:
        error = (self.mean - target.detach().float()) ** 2
        return error.flatten(error.ndim - self.dims).sum(-1) if self.dims else error


class SymlogSquaredError(SquaredError):
    """Squared error in symlog space; `mean` lives there too."""

    @property
    def prediction(self) -> Tensor:
        return symexp(self.mean)

    def loss(self, target: Tensor) -> Tensor:
        return super().loss(symlog(target.float()))
