from typing import Any

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator
from fastwm.ops.rssm_observe import _KERNEL_DTYPES, _no_vmap, bf16_products
from fastwm.ref.rssm_imagine import ActionHead, MLPWeights
from fastwm.ref.rssm_observe import RSSMWeights

__all__ = ["ActionHead", "MLPWeights", "rssm_imagine"]


def rssm_imagine(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, w: RSSMWeights, prior: MLPWeights, actor: MLPWeights,
    heads: tuple[ActionHead, ...], unimix: float = 0.01, policy_unimix: float = 0.0, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Dream H steps ahead from N states in one call, prior and actor inside. No gradients.

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

    Returns:
        States 1..H: deter `[H, N, D]`, one-hot stoch `[H, N, S, C]`, the prior's logits before mixing
        `[H, N, S, C]`; and the actions 0..H `[H + 1, N, A]`, encoded: one-hot for categoricals, the sample
        (unclipped; the model sees `a / max(1, |a|)`) for reals. Under autocast: see `rssm_observe`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.

    Source: Hafner et al., "Mastering diverse control tasks through world models" (2025) and its official code
    """
    _check(deter, stoch, uniform, noise, w, prior, actor, heads)
    library = _forward.library(deter) if deter.dtype in _KERNEL_DTYPES else None
    if library is None:
        return ref.rssm_imagine(
            deter, stoch, uniform, noise, w, prior, actor, heads, unimix, policy_unimix, eps
        )  # fmt: skip
    dtype, block = deter.dtype, w.gates.weight.shape[1]
    with torch.no_grad():
        own, embeds = w.hidden.weight.split([block, w.hidden.weight.shape[1] - block], 1)
        spec = torch.tensor([tuple(head) for head in heads])
        return _forward(
            library, deter, stoch, uniform.to(dtype), noise.to(dtype), spec, *w.embed_deter, *w.embed_stoch,
            *w.embed_action, own, embeds, w.hidden.bias, w.hidden.norm, *w.gates, *_layers(prior), *prior.out,
            *_layers(actor), *actor.out, unimix, policy_unimix, eps, bf16_products(deter),
        )  # fmt: skip


def _layers(mlp: MLPWeights) -> tuple[Tensor, ...]:
    """The first layer's three tensors, and those of all others, stacked [count, ...]."""
    first, *rest = mlp.layers
    if not rest:
        units = len(first.weight)
        return *first, first.weight.new_empty(0, units, units), *(first.bias.new_empty(0, units) for _ in range(2))
    return *first, *(torch.stack(part) for part in zip(*rest))


def _check(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, w: RSSMWeights, prior: MLPWeights, actor: MLPWeights,
    heads: tuple[ActionHead, ...],
) -> None:  # fmt: skip
    if deter.dim() != 2 or stoch.dim() != 3 or uniform.dim() != 3 or len(uniform) == 0:
        shapes = [list(x.shape) for x in (deter, stoch, uniform)]
        raise ValueError(f"expected deter [N, D], stoch [N, S, C] and uniform [H, N, S] with H >= 1, got {shapes}")
    H, (N, D), (S, C) = len(uniform), deter.shape, stoch.shape[1:]
    draws = sum(head.size for head in heads)
    width = sum(head.size * (head.classes or 1) for head in heads)
    outputs = sum(head.size * (head.classes or 2) for head in heads)
    G, U = len(w.gates.weight), len(w.embed_deter.weight)
    if G == 0 or D % G:
        raise ValueError(f"deter of width {D} does not divide into {G} blocks")
    J = D // G
    if not prior.layers or not actor.layers:
        raise ValueError("prior and actor need a hidden layer")
    expected = {
        "stoch": (stoch, (N, S, C)), "uniform": (uniform, (H, N, S)), "noise": (noise, (H + 1, N, draws)),
        "embed_deter": (w.embed_deter.weight, (U, D)), "embed_stoch": (w.embed_stoch.weight, (U, S * C)),
        "embed_action": (w.embed_action.weight, (U, width)), "hidden": (w.hidden.weight, (G, J + 3 * U, J)),
        "gates": (w.gates.weight, (G, J, 3 * J)),
        "prior": (prior.layers[0].weight, (len(prior.layers[0].bias), D)),
        "prior's output": (prior.out.weight, (S * C, len(prior.layers[0].bias))),
        "actor": (actor.layers[0].weight, (len(actor.layers[0].bias), D + S * C)),
        "actor's output": (actor.out.weight, (outputs, len(actor.layers[0].bias))),
    }  # fmt: skip
    for name, (x, shape) in expected.items():
        if x.shape != shape or x.device != deter.device:
            raise ValueError(f"expected {name} {list(shape)} on {deter.device}, got {list(x.shape)} on {x.device}")
    if not all(x.dtype == deter.dtype for x in (stoch, w.gates.weight, actor.out.weight)):
        raise ValueError(f"expected one dtype, got deter {deter.dtype}, stoch {stoch.dtype}, {w.gates.weight.dtype}")


def _fake(deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, heads: Tensor, *rest: Any) -> Any:
    H, N, new = len(uniform), len(deter), deter.new_empty
    width = rest[6].shape[1]  # w_action
    return new(H, *deter.shape), new(H, *stoch.shape), new(H, *stoch.shape), new(H + 1, N, width)


_forward = Operator("rssm_imagine", fake=_fake, vmap=_no_vmap("rssm_imagine"))
