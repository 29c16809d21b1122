"""Fused operators: each validates, casts under autocast, and calls the fastest backend there is."""

from fastwm.ops._backend import backend
from fastwm.ops.block_gru_scan import BlockGRUWeights, block_gru_scan
from fastwm.ops.categorical import (
    CategoricalSample,
    balanced_categorical_kl,
    categorical_entropy,
    categorical_kl,
    straight_through_categorical,
)
from fastwm.ops.cell_steps import block_gru_step, gru_step, layernorm_gru_step, lstm_step, planet_gru_step, reset_carry
from fastwm.ops.cells import (
    block_gru_gates,
    gru_gates,
    layernorm_gru_gates,
    lstm_gates,
    planet_gru_reset,
    planet_gru_update,
)
from fastwm.ops.gru_rssm import (
    GRURSSMKind,
    GRURSSMWeights,
    LayerWeights,
    PolicyHead,
    gru_rssm_imagine,
    gru_rssm_observe,
    gru_rssm_open_loop,
)
from fastwm.ops.lambda_return import lambda_return
from fastwm.ops.laprop import laprop_step_
from fastwm.ops.mdn import mdn_nll, mdn_sample
from fastwm.ops.mdn_rnn_imagine import MDNRNNWeights, Rollouts, mdn_rnn_imagine
from fastwm.ops.mlp import MLPWeights, mlp
from fastwm.ops.norm_act import layer_norm_elu, layer_norm_silu, rms_norm, rms_norm_silu
from fastwm.ops.philox import philox_bits, philox_normal, philox_uniform
from fastwm.ops.rssm_imagine import ActionHead, rssm_imagine, rssm_open_loop
from fastwm.ops.rssm_observe import DenseWeights, LinearWeights, RSSMWeights, rssm_observe
from fastwm.ops.scans import gru_scan, layernorm_gru_scan, lstm_scan, planet_gru_scan
from fastwm.ops.symlog import symexp, symlog
from fastwm.ops.two_hot import two_hot_loss, two_hot_mean
from fastwm.renamed import old_names

__getattr__ = old_names(__name__, {"gru_rssm_dream": gru_rssm_imagine, "mdn_rnn_rollout": mdn_rnn_imagine})

__all__ = [
    "ActionHead",
    "BlockGRUWeights",
    "CategoricalSample",
    "DenseWeights",
    "GRURSSMKind",
    "GRURSSMWeights",
    "LayerWeights",
    "LinearWeights",
    "MDNRNNWeights",
    "MLPWeights",
    "PolicyHead",
    "RSSMWeights",
    "Rollouts",
    "backend",
    "balanced_categorical_kl",
    "block_gru_gates",
    "block_gru_scan",
    "block_gru_step",
    "categorical_entropy",
    "categorical_kl",
    "gru_gates",
    "gru_rssm_imagine",
    "gru_rssm_observe",
    "gru_rssm_open_loop",
    "gru_scan",
    "gru_step",
    "lambda_return",
    "laprop_step_",
    "layer_norm_elu",
    "layer_norm_silu",
    "layernorm_gru_gates",
    "layernorm_gru_scan",
    "layernorm_gru_step",
    "lstm_gates",
    "lstm_scan",
    "lstm_step",
    "mdn_nll",
    "mdn_rnn_imagine",
    "mdn_sample",
    "mlp",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "planet_gru_reset",
    "planet_gru_scan",
    "planet_gru_step",
    "planet_gru_update",
    "reset_carry",
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
