"""Modules with the field's names; each is a plain `nn.Module` that can be used alone."""

from fastwm.nn.cells import BlockGRUCell, GRUCell, LayerNormGRUCell, LSTMCell, PlanetGRUCell
from fastwm.nn.conv_vae import ConvVAE, Latent
from fastwm.nn.distributions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    SquaredError,
    SymlogSquaredError,
    TwoHot,
    sigmoid2_std,
    softplus_std,
)
from fastwm.nn.encoder import Decoder, Encoder
from fastwm.nn.functional import symexp_bins
from fastwm.nn.heads import Actor, BernoulliHead, Policy, TwoHotHead
from fastwm.nn.layers import MLP, BlockLinear, Conv2d, Dense, Linear, RMSNorm, RMSNormSiLU
from fastwm.nn.mdn import MDNHead, Mixture
from fastwm.nn.mdn_rnn import MDNRNN
from fastwm.nn.normalize import PercentileNormalizer
from fastwm.nn.recurrent import GRU, LSTM, LayerNormGRU
from fastwm.nn.rssm import RSSM, BlockGRU, State

__all__ = [
    "GRU",
    "LSTM",
    "MDNRNN",
    "MLP",
    "RSSM",
    "Actor",
    "Bernoulli",
    "BernoulliHead",
    "BlockGRU",
    "BlockGRUCell",
    "BlockLinear",
    "BoundedNormal",
    "Categorical",
    "Conv2d",
    "ConvVAE",
    "Decoder",
    "Dense",
    "Encoder",
    "GRUCell",
    "LSTMCell",
    "Latent",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "Linear",
    "MDNHead",
    "Mixture",
    "PercentileNormalizer",
    "PlanetGRUCell",
    "Policy",
    "RMSNorm",
    "RMSNormSiLU",
    "SquaredError",
    "State",
    "SymlogSquaredError",
    "TwoHot",
    "TwoHotHead",
    "sigmoid2_std",
    "softplus_std",
    "symexp_bins",
]
