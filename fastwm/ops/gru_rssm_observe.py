"""Filtering with the RSSM of PlaNet, Dreamer V1 and DreamerV2, a whole sequence in one call."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    Shapes,
    bf16_products,
    check_dims,
    check_shapes,
    check_tensor,
    check_widths,
    layer_shapes,
    no_vmap,
)
from fastwm.ops._declared import numbers
from fastwm.ops.linear import linear
from fastwm.ops.norm_act import ACTIVATIONS
from fastwm.weights import GRURSSMKind, GRURSSMWeights, LayerWeights, LinearWeights

_CELLS = numbers("GruCell")


def gru_rssm_observe(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor, w: GRURSSMWeights,
    kind: GRURSSMKind,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Filter a whole sequence with the RSSM of PlaNet, V1 or V2 in one call, the posterior's sample inside.

        x_t = dense([z_{t-1}, a_t]),   h_t = GRU(x_t, h_{t-1}),   z_t ~ q(dense([h_t, tokens_t]))

    Where `is_first`, h, z and the action before are zero.

    Args:
        tokens: `[T, B, E]`, T >= 1, float32 or float64: the encoded observations.
        action: `[T, B, A]`, encoded: the action that led to each.
        is_first: `[T, B]` bool.
        deter, stoch: `[B, D]`, and `[B, S, C]` one-hot or `[B, S]`: the state before the first step. They are data:
            no gradient.
        noise: `[T, B, S]`, uniform in [0, 1) for categoricals, standard normal for Gaussians.
        w, kind: the parameters, and which of the systems this is.

    Returns:
        deter `[T, B, D]`, the sample `[T, B, S, C]` or `[T, B, S]`, and the posterior's statistics: logits before
        mixing `[T, B, S, C]`, or means and raw deviations `[T, B, 2S]` with std = softplus(raw) + 0.1. A one-hot's
        gradient is that of the mixed probabilities (straight through), a Gaussian's that of mean + std * noise.
        Differentiable once in tokens, action and all weights that are used; with the `ref` backend any number of times.
        Under autocast to bfloat16 the products are in bfloat16 with float32 sums where the CPU has them, and all
        else stays float32; with `ref` it is as autocast has it.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0.

    Source: Hafner et al., "Learning latent dynamics for planning from pixels" (2019), "Dream to control" (2020),
    "Mastering Atari with discrete world models" (2021), and their official codes
    """
    _check(tokens, action, is_first, deter, stoch, noise, w, kind)
    library = _forward.library(deter) if deter.dtype in KERNEL_DTYPES else None
    if library is None:
        return ref.gru_rssm_observe(tokens, action, is_first, deter, stoch, noise, w, kind)
    bf16 = bf16_products(deter)
    with torch.autocast(deter.device.type, enabled=False):
        return _observe(library, tokens, action, is_first, deter, stoch, noise, w, kind, bf16)


def _observe(
    library: Library, tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor,
    w: GRURSSMWeights, kind: GRURSSMKind, bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Everything that waits for no other step is done here for all of them; the operator walks the dependent chain."""
    action = action.to(deter.dtype).masked_fill(is_first[..., None], 0)
    w_stoch, w_action = w.input.weight.split([w.input.weight.shape[1] - action.shape[2], action.shape[2]], 1)
    input_in = F.linear(action, w_action, w.input.bias)
    w_deter, w_tokens = w.post.weight.split([deter.shape[1], tokens.shape[2]], 1)
    post_in = linear(tokens.to(deter.dtype), w_tokens, w.post.bias, bf16)
    inputs = (input_in, post_in, is_first, deter.detach(), stoch.detach(), noise.to(deter.dtype))
    return gru_rssm_sequence(library, *inputs, w_stoch, w, w_deter, w.post, w.post_stats, kind, bf16)


def gru_rssm_sequence(
    library: Library, input_in: Tensor, layer_in: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor,
    w_stoch: Tensor, w: GRURSSMWeights, w_deter: Tensor, layer: LayerWeights, stats: LinearWeights, kind: GRURSSMKind,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The dependent chain, its latent drawn from `layer` and `stats`; differentiable in the start state too.

    input_in, layer_in `[T, B, U]` are the parts of the input layer and of `layer` that come from outside the chain,
    with their biases; w_stoch `[U, Z]` and w_deter `[U, D]` are the weights of the rest.
    """
    w_x, b_x, w_h, b_h, *norm = _gates(w.cell, deter.shape[1], kind)
    inputs = (
        input_in, layer_in, is_first, deter, stoch, noise, w_stoch, *_norm(w.input), w_x, b_x, w_h, b_h, *norm,
        w_deter, *_norm(layer), *stats,
    )  # fmt: skip
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    options = (_CELLS[kind.cell], ACTIVATIONS[kind.activation], kind.unimix, kind.eps, save, bf16)
    deters, stochs, all_stats = _forward(library, *inputs, *options)
    return deters, stochs, all_stats


def _norm(layer: LayerWeights) -> tuple[Tensor | None, Tensor | None]:
    if layer.scale is None:
        return None, None
    return layer.scale, torch.zeros_like(layer.scale) if layer.shift is None else layer.shift


def _gates(cell: tuple[Any, ...], width: int, kind: GRURSSMKind) -> tuple[Tensor | None, ...]:
    """w_x [3D, U], b_x [3D], w_h [3D, D], b_h [3D], and the norm's scale and shift [3D]."""
    if kind.cell == "gru":
        w_x, w_h, b_x, b_h = cell
        return w_x, b_x, w_h, b_h, None, None
    if kind.cell == "planet_gru":
        w_gates, b_gates, w_cand, b_cand = cell
        weight, bias = torch.cat([w_gates, w_cand]), torch.cat([b_gates, b_cand])
        w_x, w_h = weight.split([weight.shape[1] - width, width], 1)
        return w_x, bias, w_h, None, None, None
    weight, bias, scale, shift = cell
    units = weight.shape[1] - width
    if kind.order == "xh":
        w_x, w_h = weight.split([units, width], 1)
    else:
        w_h, w_x = weight.split([width, units], 1)
    return w_x, bias, w_h, None, scale, shift


def _check(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor, w: GRURSSMWeights,
    kind: GRURSSMKind,
) -> None:  # fmt: skip
    check_dims(tokens=(tokens, "[T, B, E]"), action=(action, "[T, B, A]"))
    check_dims(deter=(deter, "[B, D]"), stoch=(stoch, "[B, S, C]" if kind.classes else "[B, S]"))
    if tokens.shape[0] == 0:  # len() would fix the size in a traced graph
        raise ValueError(f"expected tokens [T, B, E] with T >= 1, got {list(tokens.shape)}")
    (T, B, E), A, D, S = tokens.shape, action.shape[2], deter.shape[1], stoch.shape[1]
    latent_shape = (B, S, kind.classes) if kind.classes else (B, S)
    check_tensor("is_first", is_first, (T, B), deter, torch.bool)
    data: Shapes = {"tokens": (tokens, (T, B, E)), "action": (action, (T, B, A)), "noise": (noise, (T, B, S))}
    expected = {
        "deter": (deter, (B, D)), "stoch": (stoch, latent_shape), **weight_shapes(D, S, A, w, kind),
        **latent_shapes("post", w.post, w.post_stats, D + E, S, len(w.input.weight), kind),
    }  # fmt: skip
    check_shapes("deter", deter, expected, data)


def weight_shapes(D: int, S: int, A: int, w: GRURSSMWeights, kind: GRURSSMKind) -> Shapes:
    """The shapes of the parameters of the input layer and the cell."""
    check_kind(kind)
    U = len(w.input.weight)
    check_widths(deter=D, stoch=S, units=U)
    if len(w.cell) != 4:
        raise ValueError(f"expected the four parameters of {kind.cell}, got {len(w.cell)}")
    names = {
        "gru": {"w_ih": (3 * D, U), "w_hh": (3 * D, D), "b_ih?": (3 * D,), "b_hh?": (3 * D,)},
        "planet_gru": {"w_gates": (2 * D, U + D), "b_gates": (2 * D,), "w_cand": (D, U + D), "b_cand": (D,)},
        "layernorm_gru": {"weight": (3 * D, U + D), "bias?": (3 * D,), "scale": (3 * D,), "shift": (3 * D,)},
    }[kind.cell]
    given = zip(names, zip(w.cell, names.values()))
    cell = {f"cell.{name.strip('?')}": (x, size) for name, (x, size) in given if x is not None or "?" not in name}
    return layer_shapes("input", w.input, (U, S * (kind.classes or 1) + A)) | cell


def latent_shapes(
    name: str, layer: LayerWeights, stats: LinearWeights, inputs: int, S: int, U: int, kind: GRURSSMKind
) -> Shapes:
    """The shapes of the posterior's or the prior's parameters; its layer is as wide as the input layer, U."""
    outputs = S * (kind.classes or 2)
    return layer_shapes(name, layer, (U, inputs)) | layer_shapes(f"{name}_stats", LayerWeights(*stats), (outputs, U))


def check_kind(kind: GRURSSMKind) -> None:
    """Raises ValueError for a name that no RSSM of these has, or a number outside its range."""
    names = {"cell": tuple(_CELLS), "activation": ("relu", "elu", "silu"), "order": ("xh", "hx")}
    for name, known in names.items():
        if getattr(kind, name) not in known:
            raise ValueError(f"kind.{name} is one of {', '.join(known)}, not {getattr(kind, name)!r}")
    if kind.classes < 0 or not 0 <= kind.unimix < 1:
        raise ValueError(f"expected classes >= 0 and 0 <= unimix < 1, got {kind.classes} and {kind.unimix}")


_forward = Operator("gru_rssm_observe", no_vmap("gru_rssm_observe"))
