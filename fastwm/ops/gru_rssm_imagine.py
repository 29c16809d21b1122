"""Dreaming with the RSSM of PlaNet, Dreamer V1 and DreamerV2: the actor inside, a whole horizon in one call."""

from typing import Any

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    Shapes,
    autocast_is_on,
    bf16_products,
    check_shapes,
    layer_shapes,
    no_vmap,
)
from fastwm.ops._declared import lists
from fastwm.ops.gru_rssm_observe import (
    _CELLS,
    _gates,
    _norm,
    latent_shapes,
    weight_shapes,
)
from fastwm.ops.mlp import even, mlp_layers, wants_gradient
from fastwm.ops.norm_act import ACTIVATIONS
from fastwm.renamed import warn_renamed
from fastwm.weights import GRURSSMKind, GRURSSMWeights, LayerWeights, LinearWeights, MLPWeights, PolicyHead


def gru_rssm_imagine(
    deter: Tensor, stoch: Tensor, noise: Tensor, action_noise: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    actor: tuple[LayerWeights, ...] | None = None, actor_out: LinearWeights | None = None,
    heads: tuple[PolicyHead, ...] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """Dream H steps ahead in one call, prior and actor inside, with the gradient through the dynamics.

        a_k ~ actor(sg([z_k, h_k])),   (h_{k+1}, z_{k+1}) = prior(h_k, z_k, a_k)

    Args:
        deter, stoch: `[N, D]`, and `[N, S, C]` or `[N, S]`, float32 or float64: the states dreamt from. No gradient.
        noise: `[H, N, S]`, H >= 1, the latents' noise, as for `gru_rssm_observe`.
        action_noise: `[H, N, sum of sizes]`, see `PolicyHead`.
        w, kind: see `gru_rssm_observe`. They get no gradient: the model is a fixed function here.
        actor, actor_out, heads: its layers (with `kind`'s activation), the outputs of all heads, and the heads.

    Returns:
        States 1..H as `gru_rssm_open_loop` has them, and the actions 0..H-1 `[H, N, A]`, encoded. Differentiable once
        in the actor's parameters, through actions, latents and dynamics; with `ref` any number of times. Under
        autocast: see `gru_rssm_observe`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.

    Source: Hafner et al., "Dream to control" (2020), "Mastering Atari with discrete world models" (2021), and their
    official codes
    """
    if actor is None or actor_out is None:  # until 0.1 this name was that of the rollout with given actions
        from fastwm.ops.gru_rssm_open_loop import gru_rssm_open_loop

        warn_renamed("gru_rssm_imagine without an actor", "gru_rssm_open_loop")
        return gru_rssm_open_loop(deter, stoch, noise, action_noise, w, kind)
    _check(deter, stoch, noise, action_noise, w, kind, actor, actor_out, heads)
    w = _constants(w)
    library = _forward.library(deter) if deter.dtype in KERNEL_DTYPES else None
    policy = _policy(deter, stoch, kind, actor, actor_out) if library else None
    if library is None or policy is None:
        return ref.gru_rssm_imagine(deter, stoch, noise, action_noise, w, kind, actor, actor_out, heads)
    bf16 = bf16_products(deter)
    if not autocast_is_on(deter):
        return _dream(library, deter, stoch, noise, action_noise, w, kind, policy, heads, bf16)
    with torch.autocast(deter.device.type, enabled=False):
        return _dream(library, deter, stoch, noise, action_noise, w, kind, policy, heads, bf16)


def _dream(
    library: Library, deter: Tensor, stoch: Tensor, noise: Tensor, action_noise: Tensor, w: GRURSSMWeights,
    kind: GRURSSMKind, policy: MLPWeights, heads: tuple[PolicyHead, ...], bf16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    layers = mlp_layers(policy)
    save = wants_gradient(*layers)
    start = deter.detach(), stoch.detach(), noise.to(deter.dtype), action_noise.to(deter.dtype)
    model = _model_inputs(deter, stoch, w, kind)
    actor = *layers, *lists("PolicyHead", heads)
    deters, stochs, stats, actions = _forward(library, *start, *model, None, *actor, save, bf16)
    return deters, stochs, stats, actions


def gru_rssm_follow(
    library: Library, deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`gru_rssm_open_loop` without gradients: the dream, with given actions in place of an actor."""
    start = deter, stoch, noise.to(deter.dtype), deter.new_empty(*noise.shape[:2], 0)
    model = _model_inputs(deter, stoch, w, kind)
    empty = LayerWeights(deter.new_empty(0, deter.shape[1] + stoch.shape[1:].numel()))
    nobody = mlp_layers(MLPWeights((empty,), LinearWeights(deter.new_empty(0, 0), deter.new_empty(0))))
    deters, stochs, stats, _ = _forward(
        library, *start, *model, action.to(deter.dtype), *nobody, *lists("PolicyHead", ()), False, bf16
    )
    return deters, stochs, stats


def _model_inputs(deter: Tensor, stoch: Tensor, w: GRURSSMWeights, kind: GRURSSMKind) -> tuple[Any, ...]:
    flat = stoch.shape[1:].numel()
    w_stoch, w_action = w.input.weight.split([flat, w.input.weight.shape[1] - flat], 1)
    zeros = deter.new_zeros(len(w_stoch))
    b_input, b_layer = (zeros if layer.bias is None else layer.bias for layer in (w.input, w.prior))
    w_x, b_x, w_h, b_h, *norm = _gates(w.cell, deter.shape[1], kind)
    return (
        w_action, b_input, b_layer, w_stoch, *_norm(w.input), w_x, b_x, w_h, b_h, *norm, w.prior.weight,
        *_norm(w.prior), *w.prior_stats, _CELLS[kind.cell], ACTIVATIONS[kind.activation], kind.unimix, kind.eps,
    )  # fmt: skip


def _constants(w: GRURSSMWeights) -> GRURSSMWeights:
    def cut(part: Any) -> list[Any]:
        return [x if x is None else x.detach() for x in part]

    return w._replace(
        input=LayerWeights(*cut(w.input)), cell=tuple(cut(w.cell)), prior=LayerWeights(*cut(w.prior)),
        prior_stats=LinearWeights(*cut(w.prior_stats)),
    )  # fmt: skip


def _policy(
    deter: Tensor, stoch: Tensor, kind: GRURSSMKind, actor: tuple[LayerWeights, ...], out: LinearWeights
) -> MLPWeights | None:
    """The actor as an MLP of [deter, stoch], if its layers have one width and all a norm or none; else None."""
    if not actor or len({layer.scale is None for layer in actor}) > 1:
        return None
    layers = [LayerWeights(layer.weight, layer.bias, *_norm(layer)) for layer in actor]
    bias = out.weight.new_zeros(len(out.weight)) if out.bias is None else out.bias
    first, *rest = layers
    latent, state = first.weight.split([stoch.shape[1:].numel(), deter.shape[1]], 1)
    first = first._replace(weight=torch.cat([state, latent], 1))
    policy = MLPWeights((first, *rest), LinearWeights(out.weight, bias), kind.activation)
    return policy if even(policy) else None


def _check(
    deter: Tensor, stoch: Tensor, noise: Tensor, action_noise: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    actor: tuple[LayerWeights, ...], actor_out: LinearWeights, heads: tuple[PolicyHead, ...],
) -> None:  # fmt: skip
    for head in heads:
        fits = head.classes >= 1 if head.dist == "onehot" else head.classes == 0
        if head.dist not in ("onehot", "tanh_normal", "trunc_normal") or not fits or head.size < 1:
            raise ValueError(f"expected heads with classes (onehot) or without (tanh_normal, trunc_normal), got {head}")
    if not heads:
        raise ValueError("the policy needs a head")
    A = sum(head.size * (head.classes or 1) for head in heads)
    expected = start_shapes(deter, stoch, noise, A, w, kind)
    inputs = deter.shape[1] + stoch.shape[1:].numel()
    for i, layer in enumerate(actor):
        expected |= layer_shapes(f"actor[{i}]", layer, (len(layer.weight), inputs))
        inputs = len(layer.weight)
    outputs = sum(head.size * (head.classes or 2) for head in heads)
    expected |= layer_shapes("actor_out", LayerWeights(*actor_out), (outputs, inputs))
    data: Shapes = {
        "noise": (noise, (*noise.shape[:1], *stoch.shape[:2])),
        "action_noise": (action_noise, (*noise.shape[:2], sum(head.size for head in heads))),
    }
    check_shapes("deter", deter, expected, data)


def start_shapes(deter: Tensor, stoch: Tensor, noise: Tensor, A: int, w: GRURSSMWeights, kind: GRURSSMKind) -> Shapes:
    """Shapes of the states and parameters that imagining reads."""
    if deter.dim() != 2 or stoch.dim() != 2 + bool(kind.classes) or noise.dim() != 3 or noise.shape[0] == 0:
        latent, shapes = "[N, S, C]" if kind.classes else "[N, S]", [list(x.shape) for x in (deter, stoch, noise)]
        raise ValueError(f"expected deter [N, D], stoch {latent} and noise [H, N, S] with H >= 1, got {shapes}")
    (N, D), S = deter.shape, stoch.shape[1]
    return {
        "stoch": (stoch, (N, S, kind.classes) if kind.classes else (N, S)),
        **weight_shapes(D, S, A, w, kind),
        **latent_shapes("prior", w.prior, w.prior_stats, D, S, len(w.input.weight), kind),
    }  # fmt: skip


_forward = Operator("gru_rssm_imagine", no_vmap("gru_rssm_imagine"))
