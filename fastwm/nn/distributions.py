"""Distributions that heads predict. Noise is an argument everywhere, so that a sample can be replayed."""

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ops
from fastwm.ops import symexp, symlog


class Categorical:
    """Categorical over the last axis of `logits` [..., C], optionally mixed with `unimix` of the uniform."""

    def __init__(self, logits: Tensor, unimix: float = 0.0):
        self.logits = logits.float()
        self.unimix = unimix

    @cached_property
    def log_probs(self) -> Tensor:
        """ln p [..., C] of the mixture."""
        if not self.unimix:
            return F.log_softmax(self.logits, -1)
        return torch.log((1 - self.unimix) * F.softmax(self.logits, -1) + self.unimix / self.logits.shape[-1])

    @property
    def probs(self) -> Tensor:
        return torch.exp(self.log_probs)

    @torch.no_grad()
    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """Class index int64 [...] by the inverse CDF, summed in class order; `uniform` [...] is the noise."""
        return ops.straight_through_categorical(self.logits, uniform, self.unimix).index

    def onehot(self, uniform: Tensor | None = None) -> Tensor:
        """One-hot sample [..., C]; exactly 0/1 forward, the gradient of the (mixed) probabilities backward."""
        return ops.straight_through_categorical(self.logits, uniform, self.unimix).sample

    def log_prob(self, index: Tensor) -> Tensor:
        return self.log_probs.gather(-1, index.long()[..., None])[..., 0]

    def entropy(self) -> Tensor:
        return ops.categorical_entropy(self.logits, self.unimix)

    def loss(self, target: Tensor) -> Tensor:
        return -self.log_prob(target)

    @property
    def prediction(self) -> Tensor:
        """The most likely class [...]."""
        return self.logits.argmax(-1)

    def mode(self) -> Tensor:
        return self.prediction


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
        return normal_log_prob(value, self.mean, self.std)

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

    @cached_property
    def mean(self) -> Tensor:
        """Expectation [...]; mirrored bins are added pairwise, so that uniform logits give exactly zero."""
        return ops.two_hot_mean(self.logits, self.bins)

    def loss(self, target: Tensor, second_target: Tensor | None = None, second_weight: float = 1.0) -> Tensor:
        """Cross-entropy of the two-hot encoded `target` [...], and `second_weight` times that of a second one."""
        return ops.two_hot_loss(self.logits, target, self.bins, second_target, second_weight)


def softplus_std(raw: Tensor, minimum: float = 0.1, shift: float = 0.0) -> Tensor:
    """`softplus(raw + shift) + minimum`: the latent's standard deviation in PlaNet and Dreamer V1.

    V1's actor has `minimum` 1e-4 and `shift` ln(e^5 - 1), so that it starts at 5.
    """
    return F.softplus(raw.float() + shift) + minimum


def sigmoid2_std(raw: Tensor, minimum: float = 0.1) -> Tensor:
    """`2 sigmoid(raw / 2) + minimum`: DreamerV2's standard deviation, of Gaussian latents and of the actor."""
    return 2 * torch.sigmoid(raw.float() / 2) + minimum


def normal_kl(post_stats: Tensor, prior_stats: Tensor) -> Tensor:
    """KL(post || prior) [...] of Gaussian latents, from means and raw deviations [..., 2S]; the sum over S."""
    (mean, raw), (prior_mean, prior_raw) = post_stats.chunk(2, -1), prior_stats.chunk(2, -1)
    std, prior_std = softplus_std(raw), softplus_std(prior_raw)
    ratio, distance = (std / prior_std).square(), ((mean - prior_mean) / prior_std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def normal_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


class TanhNormal:
    """Dreamer V1's action: tanh of a Normal with mean 5 tanh(raw / 5) and std softplus(raw + shift) + minimum."""

    def __init__(self, mean: Tensor, std: Tensor, minimum: float = 1e-4, shift: float = 0.0):
        self.mean = 5 * torch.tanh(mean / 5)
        self.std = softplus_std(std, minimum, shift)

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of the squashed value; +-1 count as the largest numbers below."""
        return self._log_prob_before_tanh(torch.atanh(value.clamp(-0.99999997, 0.99999997)))

    def _log_prob_before_tanh(self, x: Tensor) -> Tensor:
        return normal_log_prob(x, self.mean, self.std) - 2 * (math.log(2) - x - F.softplus(-2 * x))

    def sample(self, normal: Tensor | None = None) -> Tensor:
        return torch.tanh(self.mean + self.std * (torch.randn_like(self.mean) if normal is None else normal))

    def mode(self, samples: int = 100) -> Tensor:
        """The most likely of 100 samples, each row's own."""
        x = self.mean + self.std * torch.randn(samples, *self.mean.shape, device=self.mean.device)
        event = self._log_prob_before_tanh(x)
        best = event.flatten(2).sum(-1).argmax(0) if event.ndim > 2 else event.argmax(0)  # [B]
        return torch.tanh(x[best, torch.arange(x.shape[1], device=x.device)])

    def entropy(self, samples: int = 100) -> Tensor:
        """The mean of -log p over 100 samples."""
        x = self.mean + self.std * torch.randn(samples, *self.mean.shape, device=self.mean.device)
        return -self._log_prob_before_tanh(x).mean(0)


class TruncatedNormal:
    """DreamerV2's action: a Normal cut at -1 and 1, its density renormalised; mean tanh(raw), see `sigmoid2_std`."""

    def __init__(self, mean: Tensor, std: Tensor, minimum: float = 0.1):
        self.mean = torch.tanh(mean)
        self.std = sigmoid2_std(std, minimum)

    @cached_property
    def limits(self) -> tuple[Tensor, Tensor]:
        """-1 and 1, standardised."""
        return (-1 - self.mean) / self.std, (1 - self.mean) / self.std

    @cached_property
    def mass(self) -> Tensor:
        """The uncut Normal's share of [-1, 1]."""
        low, high = self.limits
        return torch.special.ndtr(high) - torch.special.ndtr(low)

    def log_prob(self, value: Tensor) -> Tensor:
        return normal_log_prob(value, self.mean, self.std) - self.mass.log()

    def entropy(self) -> Tensor:
        low, high = self.limits
        density_low, density_high = (torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) for x in (low, high))
        moment = (low * density_low - high * density_high) / self.mass
        return torch.log(self.std * self.mass) + 0.5 * math.log(2 * math.pi * math.e) + 0.5 * moment

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """By the inverse CDF, clipped to +-(1 - 1e-6) straight through.

        As in the official DreamerV2, the gradient holds the standardised noise fixed: d/dmean = 1, d/dstd = noise.
        """
        uniform = torch.rand_like(self.mean) if uniform is None else uniform
        with torch.no_grad():  # of its own, so that `limits` and `mass` keep their gradient
            low, high = (-1 - self.mean) / self.std, (1 - self.mean) / self.std
            below, above = torch.special.ndtr(low), torch.special.ndtr(high)
            noise = torch.special.ndtri(below + uniform.to(low.dtype) * (above - below)).clamp(low, high)
        sample = self.mean + self.std * noise
        return sample + (sample.clamp(-1 + 1e-6, 1 - 1e-6) - sample).detach()

    def mode(self) -> Tensor:
        return self.mean


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
        error = F.mse_loss(self.mean, target.detach().float(), reduction="none")
        return error.flatten(error.ndim - self.dims).sum(-1) if self.dims else error


class UnitNormal(SquaredError):
    """N(mean, 1) over the last `dims` axes; the loss is the whole negative log-likelihood."""

    def loss(self, target: Tensor) -> Tensor:
        numbers = math.prod(self.mean.shape[self.mean.ndim - self.dims :])
        return 0.5 * super().loss(target) + 0.5 * math.log(2 * math.pi) * numbers


class SymlogSquaredError(SquaredError):
    """Squared error in symlog space; `mean` is in symlog space too."""

    @property
    def prediction(self) -> Tensor:
        return symexp(self.mean)

    def loss(self, target: Tensor) -> Tensor:
        return super().loss(symlog(target.detach().float()))
