"""V of World Models: a convolutional variational autoencoder of 64x64 frames."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 64


class Latent(NamedTuple):
    """A diagonal Gaussian over latents, `[..., Z]` each; `logvar` is log sigma^2."""

    mu: Tensor
    logvar: Tensor

    def sample(self, epsilon: Tensor | None = None) -> Tensor:
        """`mu + sigma * epsilon`, in float32 at least; epsilon is drawn by torch if not given."""
        mu, logvar = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in self)
        return mu + (logvar / 2).exp() * (torch.randn_like(mu) if epsilon is None else epsilon)

    def kl(self) -> Tensor:
        """KL from the standard normal, summed over the latents: `[...]`."""
        return -0.5 * (1 + self.logvar - self.mu.square() - self.logvar.exp()).sum(-1)


class VAELoss(NamedTuple):
    """Batch means; `total = reconstruction + kl`."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    """With the floor."""


class ConvVAE(nn.Module):
    """Four convolutions down, four transposed ones up, all of stride 2 without padding.

    `channels` are the encoder's; the decoder mirrors them from a flat layer of `4 * channels[-1]`. The defaults have
    the published sizes: 4,348,547 parameters with 32 latents (CarRacing), 4,446,915 with 64 (Doom). Glorot-uniform
    weights, zero biases. Frames are `[..., 64, 64, 3]`, uint8, or float in [0, 1].

    Source: Ha and Schmidhuber, "World Models", appendix A.1, and their code
    """

    def __init__(self, latents: int = 32, channels: Sequence[int] = (32, 64, 128, 256)):
        super().__init__()
        self.latents = latents
        c1, c2, c3, c4 = channels
        self.flat = 4 * c4
        self.encoder = nn.ModuleList(nn.Conv2d(i, o, 4, 2) for i, o in ((3, c1), (c1, c2), (c2, c3), (c3, c4)))
        self.mu = nn.Linear(self.flat, latents)
        self.logvar = nn.Linear(self.flat, latents)
        self.expand = nn.Linear(latents, self.flat)
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(i, o, k, 2) for i, o, k in ((self.flat, c3, 5), (c3, c2, 5), (c2, c1, 6), (c1, 3, 6))
        )
        for name, p in self.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(p)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, frames: Tensor) -> Latent:
        """`[..., 64, 64, 3]` -> `[..., Z]` twice."""
        if frames.shape[-3:] != (SIDE, SIDE, 3):
            raise ValueError(f"expected frames [..., {SIDE}, {SIDE}, 3], got {list(frames.shape)}")
        batch = frames.shape[:-3]
        x = unit_interval(frames).reshape(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2)  # channels-last in memory
        for conv in self.encoder:
            x = F.relu(conv(x), inplace=True)
        x = x.permute(0, 2, 3, 1).reshape(*batch, self.flat)  # in the order height, width, channel
        return Latent(self.mu(x).float(), self.logvar(x).float())

    def decode_logits(self, z: Tensor) -> Tensor:
        """`[..., Z]` -> `[..., 64, 64, 3]` before the sigmoid."""
        batch = z.shape[:-1]
        x = self._first(self.expand(z.reshape(-1, self.latents)))  # no activation between the two
        for conv in self.decoder[1:]:
            x = conv(F.relu(x, inplace=True))
        return x.permute(0, 2, 3, 1).reshape(*batch, SIDE, SIDE, 3)

    def _first(self, x: Tensor) -> Tensor:
        """The first transposed convolution: of a single pixel it is a dense layer, and much faster as one."""
        kernel, bias = (self.decoder[0].get_parameter(name) for name in ("weight", "bias"))
        weight = kernel.permute(0, 2, 3, 1)  # [in, 5, 5, out], contiguous where the weight is channels-last
        x = (x @ weight.reshape(self.flat, -1).to(x.dtype)).view(-1, *weight.shape[1:]) + bias
        return x.permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """`[..., Z]` -> frames `[..., 64, 64, 3]` in [0, 1]."""
        return torch.sigmoid(self.decode_logits(z).float())

    def loss(self, frames: Tensor, epsilon: Tensor | None = None, kl_tolerance: float = 0.5) -> VAELoss:
        """The loss of `[B, 64, 64, 3]` frames.

            L = mean_b sum (x - y)^2 + mean_b max(KL_b, kl_tolerance * Z)

        The error is a sum over all numbers of a frame; the floor is of a sample's KL, summed over the latents.
        """
        latent = self.encode(frames)
        recon = self.decode(latent.sample(epsilon))
        reconstruction = (recon - unit_interval(frames)).square().flatten(1).sum(1).mean()
        kl = kl_with_floor(latent.kl(), kl_tolerance * self.latents)
        return VAELoss(reconstruction + kl, reconstruction, kl)


def kl_with_floor(kl: Tensor, floor: float) -> Tensor:
    """Mean over samples of `max(kl, floor)`: `[B]` -> scalar."""
    return kl.clamp(min=floor).mean()


def unit_interval(frames: Tensor) -> Tensor:
    """uint8 frames as floats in [0, 1]; floats as they are."""
    return frames / 255 if frames.dtype == torch.uint8 else frames
