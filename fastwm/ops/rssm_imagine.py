import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    Shapes,
    bf16_products,
    check_shapes,
    check_widths,
    no_vmap,
    select,
    uncached_autocast,
)
from fastwm.ops._declared import NAMES, lists
from fastwm.ops.categorical import straight_through_categorical
from fastwm.ops.cell_steps import block_gru_step
from fastwm.ops.mlp import by_layers, dense, even, made, mlp, mlp_layers, mlp_shapes, wants_gradient
from fastwm.ops.norm_act import rms_norm_silu
from fastwm.ops.rssm_observe import core_shapes
from fastwm.ref.rssm_imagine import _sample_action
from fastwm.weights import ActionHead, DenseWeights, MLPWeights, PolicyHead, RSSMWeights

__all__ = ["ActionHead", "rssm_imagine", "rssm_open_loop"]

MAX_READOUTS = 8  # kMaxReadouts; with the actor


def rssm_imagine(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, w: RSSMWeights, prior: MLPWeights, actor: MLPWeights,
    heads: tuple[ActionHead, ...], unimix: float = 0.01, policy_unimix: float = 0.0, eps: float = 1e-4,
    readouts: Sequence[MLPWeights] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Dream H steps ahead from N states in one call, prior and actor inside. The dream itself has no gradient.

        a_k ~ actor([h_k, z_k]),   h_{k+1} = GRU(h_k, z_k, a_k),   z_{k+1} ~ mix(softmax(prior(h_{k+1})))

    Args:
        deter, stoch: `[N, D]`, `[N, S, C]`, float32 or float64: the states dreamt from.
        uniform: `[H, N, S]` in [0, 1), H >= 1: the noise of the prior's samples.
        noise: `[H + 1, N, sum of sizes]`: one number for each part of each head, uniform in [0, 1) for a
            categorical, standard normal for a real. One more action than steps is sampled, at the last state.
        w: core and posterior, see `RSSMWeights`; of the posterior nothing is read.
        prior: its MLP, `[D] -> [S*C]`.
        actor: its MLP, `[D + S*C] -> ` the outputs of all heads.
        heads: the parts of the action, in the order of their outputs.
        unimix, policy_unimix, eps: share of the uniform in the prior and in the policy; epsilon of the norms.
        readouts: up to 7 more MLPs `[D + S*C] -> [O]` to be evaluated at every state, while it is in cache.

    Returns:
        States 0..H, the given ones first: deter `[H + 1, N, D]`, stoch `[H + 1, N, S, C]`; the prior's logits
        before mixing of states 1..H `[H, N, S, C]`; and the actions 0..H `[H + 1, N, A]`, encoded: one-hot for
        categoricals, the sample (unclipped; the model sees `a / max(1, |a|)`) for reals. Last, what the actor and each
        readout put out at the states 0..H, a tuple of `[H + 1, N, O]`, differentiable in their weights. Under
        autocast: see `rssm_observe`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.

    Source: Hafner et al., "Mastering diverse control tasks through world models" (2025) and its official code
    """
    nets = actor, *readouts
    _check(deter, stoch, uniform, noise, w, prior, nets, heads)
    served = deter.dtype in KERNEL_DTYPES and all(map(even, (prior, *nets)))
    library = _forward.library(deter) if served else None
    if library is not None:
        draws = uniform, noise
        return _imagine(library, deter, stoch, draws, None, w, prior, nets, heads, unimix, policy_unimix, eps)
    rollout = ref.rssm_imagine if select(deter) is None else _by_steps
    with uncached_autocast(deter):  # casts without gradient would serve what is differentiable in the weights
        dream = rollout(deter, stoch, uniform, noise, w, prior, actor, heads, unimix, policy_unimix, eps)
    deters, stochs, *_ = dream
    return *dream, tuple(mlp(deters, net, stochs.flatten(-2), eps) for net in nets)


def rssm_open_loop(
    deter: Tensor, stoch: Tensor, uniform: Tensor, action: Tensor, w: RSSMWeights, prior: MLPWeights,
    unimix: float = 0.01, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Roll the prior H steps ahead from N states with given actions, in one call.

    Args:
        deter, stoch, uniform, w, prior, unimix, eps: see `rssm_imagine`.
        action: `[H, N, A]`, encoded; the model sees `a / max(1, |a|)`.

    Returns:
        States 1..H: deter `[H, N, D]`, one-hot stoch `[H, N, S, C]`, the prior's logits before mixing `[H, N, S, C]`.
        Differentiable in everything, by plain PyTorch: where a gradient is wanted no kernel serves.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.
    """
    if action.dim() != 3:
        raise ValueError(f"expected action [H, N, A], got {list(action.shape)}")
    _check(deter, stoch, uniform, None, w, prior, (), (), action)
    library = _forward.library(deter) if deter.dtype in KERNEL_DTYPES and even(prior) else None
    tensors = (deter, stoch, action, *itertools.chain(*w), *itertools.chain(*prior.layers), *prior.out)
    if library is None or wants_gradient(*tensors):
        return ref.rssm_open_loop(deter, stoch, uniform, action, w, prior, unimix, eps)
    draws = uniform, uniform.new_empty(0, deter.shape[0], 0)
    deters, stochs, logits, *_ = _imagine(library, deter, stoch, draws, action, w, prior, (), (), unimix, 0.0, eps)
    return deters[1:], stochs[1:], logits


def _imagine(
    library: Library, deter: Tensor, stoch: Tensor, draws: tuple[Tensor, Tensor], action: Tensor | None, w: RSSMWeights,
    prior: MLPWeights, nets: tuple[MLPWeights, ...], heads: tuple[ActionHead, ...], unimix: float,
    policy_unimix: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
    dtype, block = deter.dtype, w.gates.weight.shape[1]
    params = [mlp_layers(net) for net in nets]
    save = [wants_gradient(*each) for each in params]
    parts = map(list, zip(*params)) if params else [[] for _ in NAMES.types["MlpLayers"]]
    policy = lists("PolicyHead", [PolicyHead(*x, "onehot" if x.classes else "bounded_normal") for x in heads])
    with torch.no_grad():
        own, embeds = w.hidden.weight.split([block, w.hidden.weight.shape[1] - block], 1)
        given = None if action is None else action.to(dtype)
        deters, stochs, logits, actions, outs, pres = _forward(
            library, deter, stoch, *(x.to(dtype) for x in draws), *policy, *w.embed_deter, *w.embed_stoch,
            *w.embed_action, own, embeds, w.hidden.bias, w.hidden.norm, *w.gates, *mlp_layers(prior), *parts,
            list(map(int, save)), given, unimix, policy_unimix, eps, bf16_products(deter),
        )  # fmt: skip
    latents = stochs.flatten(-2)
    outputs = (
        made(library, y, pre, deters, latents, each, eps) if kept else y
        for each, kept, y, pre in zip(params, save, outs, pres)
    )
    return deters, stochs, logits, actions, tuple(outputs)


@torch.no_grad()
def _by_steps(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, w: RSSMWeights, prior: MLPWeights, actor: MLPWeights,
    heads: tuple[ActionHead, ...], unimix: float, policy_unimix: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`rssm_imagine` out of fused parts, where no kernel walks all of it. Products in `dtype`, as autocast asks."""
    dtype = torch.bfloat16 if bf16_products(deter) else deter.dtype
    w, prior, actor = _in_dtype(w, dtype), _in_dtype(prior, dtype), _in_dtype(actor, dtype)
    states, actions, all_logits = [(deter, stoch)], [], []
    with torch.autocast(deter.device.type, enabled=False):
        h, z = deter.to(dtype), stoch.flatten(1).to(dtype)
        for step in range(len(noise)):
            out = by_layers(h, actor, z, eps).to(deter.dtype)
            actions.append(_sample_action(out, noise[step], heads, policy_unimix, straight_through_categorical))
            if step == len(uniform):
                break
            action = actions[-1] / actions[-1].abs().clamp(min=1)
            deter = _next_deter(h, z, action.to(dtype), deter, w, eps)
            h = deter.to(dtype)
            logits = by_layers(h, prior, eps=eps).to(deter.dtype).unflatten(-1, stoch.shape[1:])
            stoch = straight_through_categorical(logits, uniform[step], unimix).sample
            z = stoch.flatten(1).to(dtype)
            states.append((deter, stoch))
            all_logits.append(logits)
    deters, stochs = map(torch.stack, zip(*states))
    return deters, stochs, torch.stack(all_logits), torch.stack(actions)


def _in_dtype(w: Any, dtype: torch.dtype) -> Any:
    """Nested weights with what products read in `dtype`; the norms stay."""
    if isinstance(w, Tensor):
        return w.to(dtype)
    if isinstance(w, DenseWeights):
        return w._replace(weight=w.weight.to(dtype), bias=w.bias.to(dtype))
    if not isinstance(w, tuple):
        return w
    parts = [_in_dtype(part, dtype) for part in w]
    return type(w)(*parts) if hasattr(w, "_fields") else tuple(parts)


def _next_deter(h: Tensor, z: Tensor, action: Tensor, deter: Tensor, w: RSSMWeights, eps: float) -> Tensor:
    """The block GRU's step of `deter` [N, D], whose factor in products is `h`."""
    blocks = len(w.gates.weight)
    embeds = torch.cat(
        [dense(h, w.embed_deter, eps), dense(z, w.embed_stoch, eps), dense(action, w.embed_action, eps)], 1
    )
    own = h.unflatten(1, (blocks, -1))  # [N, G, J]
    x = torch.cat([own, embeds[:, None].expand(-1, blocks, -1)], -1).transpose(0, 1)  # [G, N, J + 3U]
    hidden = torch.baddbmm(w.hidden.bias.view(blocks, 1, -1), x, w.hidden.weight).transpose(0, 1).flatten(1)
    return block_gru_step(rms_norm_silu(hidden, w.hidden.norm, eps), deter, *w.gates)


def _check(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor | None, w: RSSMWeights, prior: MLPWeights,
    nets: tuple[MLPWeights, ...], heads: tuple[ActionHead, ...], action: Tensor | None = None,
) -> None:  # fmt: skip
    if deter.dim() != 2 or stoch.dim() != 3 or uniform.dim() != 3 or uniform.shape[0] == 0:
        shapes = [list(x.shape) for x in (deter, stoch, uniform)]
        raise ValueError(f"expected deter [N, D], stoch [N, S, C] and uniform [H, N, S] with H >= 1, got {shapes}")
    H, (N, D), (S, C) = uniform.shape[0], deter.shape, stoch.shape[1:]
    draws = sum(head.size for head in heads)
    width = sum(head.size * (head.classes or 1) for head in heads) if action is None else action.shape[2]
    outputs = sum(head.size * (head.classes or 2) for head in heads)
    if any(head.size < 1 or head.classes < 0 for head in heads):
        raise ValueError(f"expected heads of size 1 or more, with classes or 0 of them, got {heads}")
    if len(nets) > MAX_READOUTS:
        raise ValueError(f"expected at most {MAX_READOUTS - 1} readouts, got {len(nets) - 1}")
    for net in (prior, *nets):
        if not net.layers:
            raise ValueError("prior, actor and readouts need a hidden layer")
        if not all(isinstance(layer, DenseWeights) for layer in net.layers):
            raise ValueError(
                "prior, actor and readouts have DenseWeights, RMSNorm and SiLU; see gru_rssm_imagine for LayerWeights"
            )
    expected: Shapes = {"stoch": (stoch, (N, S, C)), **core_shapes(w, D, S * C, width)}
    expected |= mlp_shapes("prior", prior, D, S * C)
    for i, net in enumerate(nets):
        expected |= mlp_shapes(f"readout {i}" if i else "actor", net, D + S * C, len(net.out.bias) if i else outputs)
    data: Shapes = {"uniform": (uniform, (H, N, S))}
    if noise is not None:
        data["noise"] = noise, (H + 1, N, draws)
    if action is not None:
        data["action"] = action, (H, N, width)
    check_shapes("deter", deter, expected, data)
    check_widths(deter=D, stoch=S, classes=C, units=len(w.embed_deter.weight))


_forward = Operator("rssm_imagine", no_vmap("rssm_imagine"))
