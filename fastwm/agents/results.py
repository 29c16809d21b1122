"""The parts of one update: its noise, the model's view of the batch, and the dreams from there."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

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
