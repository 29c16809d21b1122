"""The RSSM of PlaNet, Dreamer V1 and DreamerV2: a dense layer, a GRU, and the latent's statistics."""

from torch import Tensor

from fastwm import ref
from fastwm.ops.gru_rssm_observe import gru_rssm_observe
from fastwm.ref.gru_rssm import GRURSSMKind, GRURSSMWeights, LayerWeights, PolicyHead
from fastwm.ref.rssm_observe import LinearWeights

__all__ = [
    "GRURSSMKind",
    "GRURSSMWeights",
    "LayerWeights",
    "PolicyHead",
    "gru_rssm_dream",
    "gru_rssm_imagine",
    "gru_rssm_observe",
]


def gru_rssm_imagine(
    deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind
) -> tuple[Tensor, Tensor, Tensor]:
    """Roll the prior H steps ahead with given actions: PlaNet's planner, overshooting, open-loop video.

    Args:
        deter, stoch: `[N, D]`, and `[N, S, C]` or `[N, S]`: the states to leave from.
        noise: `[H, N, S]`, H >= 1, as for `gru_rssm_observe`.
        action: `[H, N, A]`, encoded.
        w, kind: see `gru_rssm_observe`; of the posterior nothing is read.

    Returns:
        States 1..H: deter `[H, N, D]`, the sample, and the prior's statistics, as `gru_rssm_observe` has them.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.
    """
    return ref.gru_rssm_imagine(deter, stoch, noise, action, w, kind)


def gru_rssm_dream(
    deter: Tensor, stoch: Tensor, noise: Tensor, action_noise: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    actor: tuple[LayerWeights, ...], actor_out: LinearWeights, heads: tuple[PolicyHead, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Dream H steps ahead in one call, prior and actor inside, with the gradient through the dynamics.

        a_k ~ actor(sg([z_k, h_k])),   (h_{k+1}, z_{k+1}) = prior(h_k, z_k, a_k)

    Args:
        deter, stoch: `[N, D]`, and `[N, S, C]` or `[N, S]`: the states dreamt from. No gradient.
        noise: `[H, N, S]`, the latents' noise, as for `gru_rssm_observe`.
        action_noise: `[H, N, sum of sizes]`, see `PolicyHead`.
        w, kind: see `gru_rssm_observe`. They get no gradient: the model is a fixed function here.
        actor, actor_out, heads: its layers (with `kind`'s activation), the outputs of all heads, and the heads.

    Returns:
        States 1..H as `gru_rssm_imagine` has them, and the actions 0..H-1 `[H, N, A]`, encoded. Differentiable in the
        actor's parameters, through actions, latents and dynamics.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.
    """
    return ref.gru_rssm_dream(deter, stoch, noise, action_noise, w, kind, actor, actor_out, heads)
