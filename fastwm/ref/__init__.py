"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.block_gru_scan import block_gru_scan
from fastwm.ref.categorical import categorical_entropy, categorical_kl, straight_through_categorical
from fastwm.ref.cells import (
    block_gru_gates,
    gru_gates,
    layernorm_gru_gates,
    lstm_gates,
    planet_gru_reset,
    planet_gru_update,
)
from fastwm.ref.gru_rssm import gru_rssm_imagine, gru_rssm_observe, gru_rssm_open_loop
from fastwm.ref.lambda_return import lambda_return
from fastwm.ref.laprop import laprop_step_
from fastwm.ref.mdn import mdn_nll, mdn_sample
from fastwm.ref.mdn_rnn_imagine import mdn_rnn_imagine
from fastwm.ref.mlp import mlp
from fastwm.ref.norm_act import layer_norm_elu, layer_norm_silu, norm_act, rms_norm, rms_norm_silu
from fastwm.ref.philox import philox_bits, philox_normal, philox_uniform
from fastwm.ref.rssm_imagine import rssm_imagine, rssm_open_loop
from fastwm.ref.rssm_observe import rssm_observe
from fastwm.ref.scans import gru_scan, layernorm_gru_scan, lstm_scan, planet_gru_scan
from fastwm.ref.symlog import symexp, symlog
from fastwm.ref.two_hot import two_hot_loss, two_hot_mean

__all__ = [
    "block_gru_gates",
    "block_gru_scan",
    "categorical_entropy",
    "categorical_kl",
    "gru_gates",
    "gru_rssm_imagine",
    "gru_rssm_observe",
    "gru_rssm_open_loop",
    "gru_scan",
    "lambda_return",
    "laprop_step_",
    "layer_norm_elu",
    "layer_norm_silu",
    "layernorm_gru_gates",
    "layernorm_gru_scan",
    "lstm_gates",
    "lstm_scan",
    "mdn_nll",
    "mdn_rnn_imagine",
    "mdn_sample",
    "mlp",
    "norm_act",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "planet_gru_reset",
    "planet_gru_scan",
    "planet_gru_update",
    "rms_norm",
    "rms_norm_silu",
    "rssm_imagine",
    "rssm_observe",
    "rssm_open_loop",
    "straight_through_categorical",
    "symexp",
    "symlog",
    "two_hot_loss",
    "two_hot_mean",
]
