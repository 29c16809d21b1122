import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import (
    KERNEL_DTYPES,
    Library,
    Operator,
    Shapes,
    autocast_is_on,
    bf16_products,
    check_dims,
    check_shapes,
    check_tensor,
    check_widths,
    layer_shapes,
    no_vmap,
)
from fastwm.ops.linear import linear
from fastwm.ops.norm_act import rms_norm_silu
from fastwm.weights import DenseWeights, LinearWeights, RSSMWeights

CLUSTERS = False  # CUDA's kernel of thread-block clusters is not timed on a GPU yet: its tests and benchmark turn it on

__all__ = ["DenseWeights", "LinearWeights", "RSSMWeights", "rssm_observe"]


def rssm_observe(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, uniform: Tensor, w: RSSMWeights,
    unimix: float = 0.01, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Filter a whole sequence with DreamerV3's RSSM in one call, the posterior's sample inside.

        h_t = GRU(h_{t-1}, z_{t-1}, a_t),   logits_t = post([h_t, tokens_t]),   z_t ~ mix(softmax(logits_t))

    with `a_t / max(1, |a_t|)`, the block GRU of `fastwm.nn.BlockGRUCell`, and `mix(p) = (1 - unimix) p + unimix / C`
    sampled by the inverse CDF in class order. Where `is_first`, h, z and the action before are zero.

    Args:
        tokens: `[T, B, E]`, T >= 1, float32 or float64: the encoded observations.
        action: `[T, B, A]`, encoded: the action that led to each.
        is_first: `[T, B]` bool.
        deter, stoch: `[B, D]`, `[B, S, C]`, the state before the first step. They are data: no gradient.
        uniform: `[T, B, S]` in [0, 1), the noise.
        w: the parameters, see `RSSMWeights`.
        unimix, eps: share of the uniform in every categorical; epsilon of the RMS norms.

    Returns:
        deter `[T, B, D]`, the one-hot sample `[T, B, S, C]`, its index `[T, B, S]` int64, and the posterior's
        logits before mixing `[T, B, S, C]`. The sample's gradient is that of the mixed probabilities (straight
        through). Differentiable once in tokens, action and all weights; with the `ref` backend any number of times.
        Under autocast to bfloat16 the products are in bfloat16 with float32 sums where the hardware has them, and all
        else stays float32, but for the gates that CUDA's kernels keep; with `ref` it is as autocast has it.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or T = 0.

    Source: Hafner et al., "Mastering diverse control tasks through world models" (2025) and its official code
    """
    _check(tokens, action, is_first, deter, stoch, uniform, w)
    library = _forward.library(deter) if deter.dtype in KERNEL_DTYPES else None
    if library is None:
        return ref.rssm_observe(tokens, action, is_first, deter, stoch, uniform, w, unimix, eps)
    bf16 = bf16_products(deter)
    if autocast_is_on(deter):
        with torch.autocast(deter.device.type, enabled=False):
            return _observe(library, tokens, action, is_first, deter, stoch, uniform, w, unimix, eps, bf16)
    return _observe(library, tokens, action, is_first, deter, stoch, uniform, w, unimix, eps, bf16)


def _observe(
    library: Library, tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, uniform: Tensor,
    w: RSSMWeights, unimix: float, eps: float, bf16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Everything that waits for no other step is done here for all of them; the operator walks the dependent chain."""
    dtype, block, units = deter.dtype, w.gates.weight.shape[1], len(w.embed_deter.weight)
    own, embeds, acts = w.hidden.weight.split([block, 2 * units, units], 1)
    action = action.to(dtype).masked_fill(is_first[..., None], 0)
    action = action / action.detach().abs().clamp(min=1)
    a = rms_norm_silu(F.linear(action, w.embed_action.weight, w.embed_action.bias), w.embed_action.norm, eps)
    w_post, w_tokens = w.post.weight.split([deter.shape[1], tokens.shape[2]], 1)
    hidden_in = linear(a, acts, w.hidden.bias, bf16)
    post_in = linear(tokens.to(dtype), w_tokens, w.post.bias, bf16)
    weights = (
        *w.embed_deter, *w.embed_stoch, own, embeds, w.hidden.norm, *w.gates, w_post, w.post.norm, *w.logits
    )  # fmt: skip
    inputs = (hidden_in, post_in, is_first, deter.detach(), stoch.detach(), uniform.to(dtype), *weights)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    compact = save and bf16 and library.backend == "cuda" and dtype == torch.float32
    deters, stochs, index, logits = _forward(library, *inputs, unimix, eps, save, compact, bf16, CLUSTERS)
    return deters, stochs, index, logits


def _check(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, uniform: Tensor, w: RSSMWeights
) -> None:
    check_dims(tokens=(tokens, "[T, B, E]"), action=(action, "[T, B, A]"))
    check_dims(deter=(deter, "[B, D]"), stoch=(stoch, "[B, S, C]"))
    if tokens.shape[0] == 0:  # len() would fix the size in a traced graph
        raise ValueError(f"expected tokens [T, B, E] with T >= 1, got {list(tokens.shape)}")
    (T, B, E), D, (S, C) = tokens.shape, deter.shape[1], stoch.shape[1:]
    U, A = len(w.embed_deter.weight), action.shape[2]
    check_tensor("is_first", is_first, (T, B), deter, torch.bool)
    data: Shapes = {"tokens": (tokens, (T, B, E)), "action": (action, (T, B, A)), "uniform": (uniform, (T, B, S))}
    expected: Shapes = {
        "deter": (deter, (B, D)), "stoch": (stoch, (B, S, C)), **core_shapes(w, D, S * C, A),
        **layer_shapes("post", w.post, (U, D + E)), **layer_shapes("logits", w.logits, (S * C, U)),
    }  # fmt: skip
    check_shapes("deter", deter, expected, data)
    check_widths(deter=D, stoch=S, classes=C, units=U)


def core_shapes(w: RSSMWeights, D: int, Z: int, A: int) -> Shapes:
    """The shapes of the parameters of the recurrent core."""
    G, U = len(w.gates.weight), len(w.embed_deter.weight)
    if G == 0 or D % G:
        raise ValueError(f"deter of width {D} does not divide into {G} blocks")
    J = D // G
    return (
        layer_shapes("embed_deter", w.embed_deter, (U, D)) | layer_shapes("embed_stoch", w.embed_stoch, (U, Z))
        | layer_shapes("embed_action", w.embed_action, (U, A)) | layer_shapes("hidden", w.hidden, (G, J + 3 * U, J))
        | layer_shapes("gates", w.gates, (G, J, 3 * J))
    )  # fmt: skip


_forward = Operator("rssm_observe", no_vmap("rssm_observe"))
