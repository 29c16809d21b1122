"""Imagining with the RSSM of PlaNet, Dreamer V1 and DreamerV2: given actions, a whole horizon in one call."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm import ref
from fastwm.ops._backend import KERNEL_DTYPES, Library, autocast_is_on, bf16_products, check_shapes
from fastwm.ops.gru_rssm_imagine import _forward, gru_rssm_follow, start_shapes
from fastwm.ops.gru_rssm_observe import gru_rssm_sequence
from fastwm.weights import GRURSSMKind, GRURSSMWeights


def gru_rssm_open_loop(
    deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind
) -> tuple[Tensor, Tensor, Tensor]:
    """Roll the prior H steps ahead with given actions: PlaNet's planner, overshooting, open-loop video.

        x_k = dense([z_k, a_k]),   h_{k+1} = GRU(x_k, h_k),   z_{k+1} ~ p(dense(h_{k+1}))

    Args:
        deter, stoch: `[N, D]`, and `[N, S, C]` or `[N, S]`, float32 or float64: the states to leave from.
        noise: `[H, N, S]`, H >= 1, as for `gru_rssm_observe`.
        action: `[H, N, A]`, encoded.
        w, kind: see `gru_rssm_observe`; of the posterior nothing is read.

    Returns:
        States 1..H: deter `[H, N, D]`, the sample, and the prior's statistics, as `gru_rssm_observe` has them.
        Differentiable once in all but the noise, the start included; with `ref` any number of times. Under autocast:
        see `gru_rssm_observe`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or H = 0.

    Source: Hafner et al., "Learning latent dynamics for planning from pixels" (2019), and its official code
    """
    if action.dim() != 3:
        raise ValueError(f"expected action [H, N, A], got {list(action.shape)}")
    H, N, A = noise.shape[0], deter.shape[0], action.shape[2]
    expected = start_shapes(deter, stoch, noise, A, w, kind)
    check_shapes("deter", deter, expected, {"noise": (noise, (H, N, stoch.shape[1])), "action": (action, (H, N, A))})
    library = _forward.library(deter) if deter.dtype in KERNEL_DTYPES else None
    if library is None:
        return ref.gru_rssm_open_loop(deter, stoch, noise, action, w, kind)
    bf16 = bf16_products(deter)
    if not autocast_is_on(deter):
        return _imagine(library, deter, stoch, noise, action, w, kind, bf16)
    with torch.autocast(deter.device.type, enabled=False):
        return _imagine(library, deter, stoch, noise, action, w, kind, bf16)


def _imagine(
    library: Library, deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Where a gradient is wanted: the posterior's chain, with the prior in its place and no resets."""
    parts = deter, stoch, action, *w.input, *w.cell, *w.prior, *w.prior_stats
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parts)):
        return gru_rssm_follow(library, deter, stoch, noise, action, w, kind, bf16)
    U, A = len(w.input.weight), action.shape[2]
    w_stoch, w_action = w.input.weight.split([w.input.weight.shape[1] - A, A], 1)
    input_in = F.linear(action.to(deter.dtype), w_action, w.input.bias)
    bias = deter.new_zeros(U) if w.prior.bias is None else w.prior.bias
    never = torch.zeros(action.shape[:2], dtype=torch.bool, device=deter.device)
    inputs = input_in, bias.expand_as(input_in), never, deter, stoch, noise.to(deter.dtype)
    return gru_rssm_sequence(library, *inputs, w_stoch, w, w.prior.weight, w.prior, w.prior_stats, kind, bf16)
