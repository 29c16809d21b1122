"""The output of a mixture density network."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastwm.ops import mdn_nll, mdn_sample


class Mixture(NamedTuple):
    """Gaussian mixtures over vectors of Z numbers: a mixture each, or one jointly where `logits` lack the Z."""

    logits: Tensor  # [..., Z, K], or [..., K] where joint
    mean: Tensor  # [..., Z, K]
    log_std: Tensor  # [..., Z, K]

    def nll(self, value: Tensor) -> Tensor:
        """`[..., Z]` -> `[..., Z]`, or `[...]` where joint: see `fastwm.ops.mdn_nll`."""
        return mdn_nll(*self, value)

    def sample(self, temperature: float = 1.0, uniform: Tensor | None = None, normal: Tensor | None = None) -> Tensor:
        """`[..., Z]`: see `fastwm.ops.mdn_sample`."""
        return mdn_sample(*self, temperature, uniform, normal)


class MDNHead(nn.Module):
    """Linear -> Gaussian mixtures over `latents` numbers, beside `extra` plain outputs (a done logit, a reward).

    The columns are those of the two public codes, so that their weights fit:

    * each number has a mixture (hardmaru/WorldModelsExperiments): the extra ones first, then for every number
      K logits, K means, K log-stds: `extra + 3 Z K` columns; 480 for CarRacing, 961 with Doom's restart logit.
    * `joint` (ctallec/world-models): means `[K, Z]`, log-stds `[K, Z]`, K logits, then the extra ones:
      `(2 Z + 1) K + extra` columns; 327 for 32 numbers, reward and done.

    The initialisation is the original's: Glorot uniform, the bias as a vector of that length.

    Raises:
        ValueError: fewer than one number or component, or a negative `extra`.
    """

    def __init__(self, inputs: int, latents: int, components: int = 5, extra: int = 0, joint: bool = False):
        super().__init__()
        if latents < 1 or components < 1 or extra < 0:
            raise ValueError(f"MDNHead: {latents} latents, {components} components and {extra} extra outputs")
        self.latents, self.components, self.extra, self.joint = latents, components, extra, joint
        columns = (2 * latents + 1) * components if joint else 3 * latents * components
        self.linear = nn.Linear(inputs, columns + extra)
        nn.init.xavier_uniform_(self.linear.weight)
        limit = (3 / self.linear.out_features) ** 0.5  # Glorot's sqrt(6 / (in + out)), a vector's in and out alike
        nn.init.uniform_(self.linear.bias, -limit, limit)

    def forward(self, x: Tensor) -> tuple[Mixture, Tensor]:
        """`[..., inputs]` -> the mixtures and the extra outputs `[..., extra]`."""
        out = self.linear(x)
        return self._split_joint(out) if self.joint else self._split(out)

    def _split(self, out: Tensor) -> tuple[Mixture, Tensor]:
        extra, params = out.tensor_split([self.extra], -1)
        return Mixture(*params.unflatten(-1, (self.latents, 3, self.components)).unbind(-2)), extra

    def _split_joint(self, out: Tensor) -> tuple[Mixture, Tensor]:
        size = self.latents * self.components
        mean, log_std, logits, extra = torch.split(out, [size, size, self.components, self.extra], -1)
        mean, log_std = (x.unflatten(-1, (self.components, self.latents)).mT for x in (mean, log_std))
        return Mixture(logits, mean, log_std), extra
