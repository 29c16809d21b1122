"""The RSSM of PlaNet, Dreamer V1 and DreamerV2: a dense layer, a GRU, and the latent's statistics."""

from fastwm.ops.gru_rssm_dream import gru_rssm_dream
from fastwm.ops.gru_rssm_imagine import gru_rssm_imagine
from fastwm.ops.gru_rssm_observe import gru_rssm_observe
from fastwm.ref.gru_rssm import GRURSSMKind, GRURSSMWeights, LayerWeights, PolicyHead

__all__ = [
    "GRURSSMKind",
    "GRURSSMWeights",
    "LayerWeights",
    "PolicyHead",
    "gru_rssm_dream",
    "gru_rssm_imagine",
    "gru_rssm_observe",
]
