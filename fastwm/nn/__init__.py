"""Modules with the field's names; each is a plain `nn.Module` that can be used alone."""

from fastwm.nn.block_gru import BlockGRU
from fastwm.nn.cells import BlockGRUCell, GRUCell, LayerNormGRUCell, LSTMCell, PlanetGRUCell
from fastwm.nn.codec import Decoder, Encoder, StridedDecoder, StridedEncoder
from fastwm.nn.conv_vae import ConvVAE, Latent
from fastwm.nn.distributions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    SquaredError,
    SymlogSquaredError,
    TanhNormal,
    TruncatedNormal,
    TwoHot,
    UnitNormal,
    sigmoid2_std,
    softplus_std,
)
from fastwm.nn.functional import symexp_bins
from fastwm.nn.gru_rssm import GRURSSM, GRUState
from fastwm.nn.heads import Actor, BernoulliHead, NormalHead, Policy, TwoHotHead
from fastwm.nn.layers import (
    DREAMER_V1,
    DREAMER_V2,
    DREAMER_V3,
    MLP,
    PLANET,
    BlockLinear,
    Conv2d,
    Dense,
    Linear,
    RMSNorm,
    RMSNormSiLU,
    Style,
    UpsampleConv2d,
)
from fastwm.nn.mdn import MDNHead, Mixture
from fastwm.nn.mdn_rnn import MDNRNN
from fastwm.nn.normalize import PercentileNormalizer
from fastwm.nn.recurrent import GRU, LSTM, LayerNormGRU
from fastwm.nn.rssm import RSSM, BlockRSSM, State

__all__ = [
    "DREAMER_V1",
    "DREAMER_V2",
    "DREAMER_V3",
    "GRU",
    "GRURSSM",
    "LSTM",
    "MDNRNN",
    "MLP",
    "PLANET",
    "RSSM",
    "Actor",
    "Bernoulli",
    "BernoulliHead",
    "BlockGRU",
    "BlockGRUCell",
    "BlockLinear",
    "BlockRSSM",
    "BoundedNormal",
    "Categorical",
    "Conv2d",
    "ConvVAE",
    "Decoder",
    "Dense",
    "Encoder",
    "GRUCell",
    "GRUState",
    "LSTMCell",
    "Latent",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "Linear",
    "MDNHead",
    "Mixture",
    "NormalHead",
    "PercentileNormalizer",
    "PlanetGRUCell",
    "Policy",
    "RMSNorm",
    "RMSNormSiLU",
    "SquaredError",
    "State",
    "StridedDecoder",
    "StridedEncoder",
    "Style",
    "SymlogSquaredError",
    "TanhNormal",
    "TruncatedNormal",
    "TwoHot",
    "TwoHotHead",
    "UnitNormal",
    "UpsampleConv2d",
    "sigmoid2_std",
    "softplus_std",
    "symexp_bins",
]
