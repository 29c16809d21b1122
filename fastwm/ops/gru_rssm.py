"""The RSSM of PlaNet, Dreamer V1 and DreamerV2: a dense layer, a GRU, and the latent's statistics."""

from fastwm.ops.gru_rssm_imagine import gru_rssm_imagine
from fastwm.ops.gru_rssm_observe import gru_rssm_observe
from fastwm.ops.gru_rssm_open_loop import gru_rssm_open_loop
from fastwm.weights import GRURSSMKind, GRURSSMWeights, LayerWeights, PolicyHead

__all__ = [
    "GRURSSMKind",
    "GRURSSMWeights",
    "LayerWeights",
    "PolicyHead",
    "gru_rssm_imagine",
    "gru_rssm_observe",
    "gru_rssm_open_loop",
]
