"""The parameter types of the operators: what a network hands to a kernel, by name."""

from typing import Any, Literal, NamedTuple

from torch import Tensor


class DenseWeights(NamedTuple):
    """Linear -> RMSNorm -> SiLU: `weight` [out, in], or [G, in/G, out/G] in blocks, `bias` [out], `norm` [out]."""

    weight: Tensor
    bias: Tensor
    norm: Tensor


class LinearWeights(NamedTuple):
    """`weight` [out, in], or [G, in/G, out/G] in blocks, `bias` [out]."""

    weight: Tensor
    bias: Tensor


class BlockGRUWeights(NamedTuple):
    """DreamerV3's recurrent core. D carry, U units of every embedding, X inputs, G blocks."""

    embed_carry: DenseWeights  # [U, D]
    embed_inputs: tuple[DenseWeights, ...]  # [U, X], one for each of I inputs
    hidden: tuple[DenseWeights, ...]  # [G, D/G + (1 + I) U, D/G], and [G, D/G, D/G] from the second layer on
    gates: LinearWeights  # [G, D/G, 3D/G], each block's outputs being reset, cand and update


class RSSMWeights(NamedTuple):
    """DreamerV3's recurrent core and posterior. D deter, U hidden units, S*C latent, A action, E tokens, G blocks."""

    embed_deter: DenseWeights  # [U, D]
    embed_stoch: DenseWeights  # [U, S*C]
    embed_action: DenseWeights  # [U, A]
    hidden: DenseWeights  # [G, D/G + 3U, D/G]
    gates: LinearWeights  # [G, D/G, 3D/G], each block's outputs being reset, cand and update
    post: DenseWeights  # [U, D + E]
    logits: LinearWeights  # [S*C, U]


class LayerWeights(NamedTuple):
    """Linear -> LayerNorm where it has one -> activation: `weight` [out, in], `bias`, `scale`, `shift` [out]."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


class GRURSSMWeights(NamedTuple):
    """D deter, U hidden units, Z the flat latent, A action, E tokens; O the latent's statistics.

    Z is S*C and O is S*C, the logits, for categoricals; Z is S and O is 2S, means then raw deviations, for Gaussians.
    """

    input: LayerWeights  # [U, Z + A], reads [stoch, action]
    cell: tuple[Any, ...]  # as gru_step, planet_gru_step or layernorm_gru_step take them
    post: LayerWeights  # [U, D + E], reads [deter, tokens]
    post_stats: LinearWeights  # [O, U]
    prior: LayerWeights  # [U, D]
    prior_stats: LinearWeights  # [O, U]


class GRURSSMKind(NamedTuple):
    """The cell, the activation of the dense layers and the latent of one generation."""

    cell: Literal["planet_gru", "gru", "layernorm_gru"]
    activation: Literal["relu", "elu", "silu"]
    classes: int = 0
    """Classes of every categorical; 0 for Gaussian latents with std = softplus(raw) + 0.1."""
    order: Literal["xh", "hx"] = "xh"
    """Order of the inputs of the LayerNorm-GRU's product."""
    unimix: float = 0.0
    eps: float = 1e-3
    """Epsilon of all LayerNorms."""


class PolicyHead(NamedTuple):
    """A part of the action: `size` categoricals of `classes` classes, or `size` reals in [-1, 1].

    onehot: straight-through one-hots; noise uniform in [0, 1).
    tanh_normal: tanh of a Normal with mean 5 tanh(raw / 5), std softplus(raw + shift) + min_std; noise standard normal.
    trunc_normal: Normal cut at -1 and 1, mean tanh(raw), std 2 sigmoid(raw / 2) + min_std; noise uniform in [0, 1).
    bounded_normal: Normal with mean tanh(raw), std 0.9 sigmoid(raw + 2) + 0.1, the reals of `ActionHead`.
    The outputs of a real head are all raw means, then all raw deviations.
    """

    size: int
    classes: int
    dist: Literal["onehot", "tanh_normal", "trunc_normal", "bounded_normal"]
    min_std: float = 0.1
    shift: float = 0.0


class MLPWeights(NamedTuple):
    """Dense layers followed by a linear one.

    The layers are all `DenseWeights`, which have an RMSNorm and SiLU, or all `LayerWeights`, which have the activation
    of this name, and all of them a LayerNorm or none.
    """

    layers: tuple[DenseWeights, ...] | tuple[LayerWeights, ...]
    out: LinearWeights
    activation: str = "silu"
    """Activation: "silu", "elu" or "relu"."""


class ActionHead(NamedTuple):
    """A part of the action: `size` categoricals of `classes` classes, or `size` reals where `classes` is 0.

    Its outputs are all logits, or all means and then all deviations, before `BoundedNormal` maps them.
    """

    size: int
    classes: int


class MDNRNNWeights(NamedTuple):
    """An LSTM in torch's layout and the linear layer after it, with the columns of `fastwm.nn.MDNHead`.

    Where the input is one wider than latent and action, its last column is the restart flag: 1 at the first step.
    """

    weight_ih: Tensor  # [4D, Z + A] or [4D, Z + A + 1], input order [z, action, restart]
    weight_hh: Tensor  # [4D, D]
    bias: Tensor  # [4D]; the sum of torch's two
    out_weight: Tensor  # [extra + 3 Z K, D]: the extra outputs, then for each latent K logits, K means, K log-stds
    out_bias: Tensor  # [extra + 3 Z K]


class Rollouts(NamedTuple):
    """Results of N dreams. The last three exist if trajectories were asked for, and are zero after the end."""

    lengths: Tensor  # [N] int64, steps taken, the one that ended the dream included
    returns: Tensor  # [N], the sum of the predicted rewards, or the length where none is predicted
    z: Tensor | None  # [T, N, Z], the latent that step t led to
    action: Tensor | None  # [T, N, A], the action of step t, as the model saw it
    done: Tensor | None  # [T, N] bool
