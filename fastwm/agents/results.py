"""The parts of one update: its noise, the model's view of the batch, and the dreams from there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fastwm import ops
from fastwm.nn.distributions import Bernoulli, Categorical, SquaredError, TwoHot, UnitNormal
from fastwm.nn.gru_rssm import GRUState
from fastwm.nn.heads import Action, Policy
from fastwm.nn.rssm import State

LatentT = TypeVar("LatentT", State, GRUState)


@dataclass
class Noise:
    """Every random number of one update; `None` draws from torch's generator.

    Uniform for one-hots and truncated normals, else standard normal.
    """

    post: Tensor | None = None
    """[T, B, S]."""
    prior: Tensor | None = None
    """[H, N, S]."""
    action: Tensor | Action | None = None
    """[H, N, sum of sizes], sorted by the actions' names, or an array for each action; H + 1 rows in DreamerV3."""
    image: Mapping[str, Tensor] | None = None
    """[T, B, H, W, C] for each image, uniform: added where an image has fewer than 8 bits."""


class Streams:
    """Random numbers of updates, each shard's from a Philox stream of its own.

    A shard's numbers depend on its key and on how much it has drawn, not on the shards beside it.

    keys: of the shards whose rows lie side by side in a batch.
    """

    def __init__(self, keys: Sequence[int], device: torch.device):
        self.state = torch.tensor([[key, 0] for key in keys], dtype=torch.int64, device=device)
        """[shards, 2]: seed and offset, read and advanced on the device, so that a CUDA graph can hold it."""

    def uniform(self, *shape: int, device: torch.device | None = None) -> Tensor:
        """[..., B, size], in [0, 1)."""
        return self._draw(ops.philox_uniform, shape)

    def normal(self, *shape: int, device: torch.device | None = None) -> Tensor:
        """[..., B, size], standard normal."""
        return self._draw(ops.philox_normal, shape)

    def _draw(self, sample: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        *before, batch, size = shape
        numbers = sample(self.state, (*before, batch // len(self.state), size))  # [shards, ..., B / shards, size]
        self.state[:, 1] += 1
        return numbers.movedim(0, -3).flatten(-3, -2)


@dataclass
class World(Generic[LatentT]):
    """The model's view of a batch, [T, B, ...]."""

    tokens: Tensor
    state: LatentT
    post_stats: Tensor
    """Statistics of the posterior: logits, or means and raw deviations."""
    prior_stats: Tensor
    recon: dict[str, SquaredError | Categorical]
    reward: UnitNormal | TwoHot
    cont: Bernoulli | None
    losses: dict[str, Tensor]
    """Loss of each row [T, B]: the observations `rec/<key>`, `reward`, `cont`, and DreamerV3's `dyn` and `rep`."""


@dataclass
class Dream(Generic[LatentT]):
    """Trajectories imagined from N posterior states, and what is predicted at K states of each.

    Dreamer V1 looks at the H states that are imagined, K = H; DreamerV2 and V3 at the first one too, K = H + 1.
    """

    state: LatentT
    """[K, N, ...]."""
    prior_stats: Tensor
    """[H, N, ...], of the imagined states."""
    action: Tensor | Action
    """[H, N, A], encoded, which led to each imagined state; in DreamerV3 by name, and one more at the last state."""
    reward: Tensor
    """[K, N]."""
    discount: Tensor
    """[K, N]: weight of a state's future."""
    weight: Tensor
    """Product of the discounts so far: how much of a state is real."""
    value: UnitNormal | TwoHot
    returns: Tensor
    """[K - 1, N]: the lambda-returns."""
    losses: dict[str, Tensor]
    """The actor's and the critic's: scalars, or in DreamerV3 of every state [H, N]."""


@dataclass
class ScoredDream(Dream[LatentT]):
    """A dream since DreamerV2: with the density of the policy, and a slow critic."""

    policy: Policy
    slow_value: UnitNormal | TwoHot
