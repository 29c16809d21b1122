import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.cells import gru_gates, layernorm_gru_gates, planet_gru_reset, planet_gru_update
from fastwm.ref.rssm_observe import _sample
from fastwm.weights import GRURSSMKind, GRURSSMWeights, LayerWeights, LinearWeights, PolicyHead


def gru_rssm_observe(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor, w: GRURSSMWeights,
    kind: GRURSSMKind,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The observe sequence: see `fastwm.ops.gru_rssm_observe`."""
    deter, stoch = deter.detach(), stoch.detach()
    outputs = []
    for t in range(len(tokens)):
        first = is_first[t, :, None]
        deter, past, led = (x.masked_fill(first, 0) for x in (deter, stoch.flatten(1), action[t]))
        deter = _core(deter, past, led, w, kind)
        stats = _stats(torch.cat([deter, tokens[t]], -1), w.post, w.post_stats, kind)
        stoch = _latent(stats, noise[t], kind)
        outputs.append((deter, stoch, stats))
    deters, stochs, all_stats = map(torch.stack, zip(*outputs))
    return deters, stochs, all_stats


def gru_rssm_open_loop(
    deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind
) -> tuple[Tensor, Tensor, Tensor]:
    """The prior's rollout with given actions: see `fastwm.ops.gru_rssm_open_loop`."""
    outputs = []
    for t in range(len(action)):
        deter, stoch, stats = _imagine_step(deter, stoch, noise[t], action[t], w, kind)
        outputs.append((deter, stoch, stats))
    deters, stochs, all_stats = map(torch.stack, zip(*outputs))
    return deters, stochs, all_stats


def gru_rssm_imagine(
    deter: Tensor, stoch: Tensor, noise: Tensor, action_noise: Tensor, w: GRURSSMWeights, kind: GRURSSMKind,
    actor: tuple[LayerWeights, ...], actor_out: LinearWeights, heads: tuple[PolicyHead, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The rollout with the actor inside: see `fastwm.ops.gru_rssm_imagine`."""
    deter, stoch = deter.detach(), stoch.detach()
    states, actions = [], []
    for t in range(len(noise)):
        x = torch.cat([stoch.flatten(1), deter], -1).detach()
        for layer in actor:
            x = _layer(x, layer, kind.activation, kind.eps)
        out = F.linear(x, *actor_out)
        actions.append(_policy_sample(out.to(deter.dtype), action_noise[t], heads))
        deter, stoch, stats = _imagine_step(deter, stoch, noise[t], actions[-1], w, kind)
        states.append((deter, stoch, stats))
    deters, stochs, all_stats = map(torch.stack, zip(*states))
    return deters, stochs, all_stats, torch.stack(actions)


def _imagine_step(
    deter: Tensor, stoch: Tensor, noise: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind
) -> tuple[Tensor, Tensor, Tensor]:
    deter = _core(deter, stoch.flatten(1), action, w, kind)
    stats = _stats(deter, w.prior, w.prior_stats, kind)
    return deter, _latent(stats, noise, kind), stats


def _core(deter: Tensor, stoch: Tensor, action: Tensor, w: GRURSSMWeights, kind: GRURSSMKind) -> Tensor:
    """deter [B, D], stoch [B, Z], action [B, A] -> next deter [B, D]."""
    x = _layer(torch.cat([stoch, action.to(stoch.dtype)], -1), w.input, kind.activation, kind.eps)
    if kind.cell == "gru":
        w_ih, w_hh, b_ih, b_hh = w.cell
        return gru_gates(F.linear(x, w_ih, b_ih), F.linear(deter, w_hh, b_hh), deter)
    if kind.cell == "planet_gru":
        w_ru, b_ru, w_c, b_c = w.cell
        reset_h, update = planet_gru_reset(F.linear(torch.cat([x, deter], -1), w_ru, b_ru), deter)
        return planet_gru_update(update, F.linear(torch.cat([x, reset_h], -1), w_c, b_c), deter)
    weight, bias, scale, shift = w.cell
    inputs = torch.cat([x, deter] if kind.order == "xh" else [deter, x], -1)
    return layernorm_gru_gates(F.linear(inputs, weight, bias), scale, shift, deter, kind.eps)


def _layer(x: Tensor, w: LayerWeights, activation: str, eps: float) -> Tensor:
    x = F.linear(x, w.weight, w.bias)
    if w.scale is not None:
        x = F.layer_norm(x.to(w.scale.dtype), w.scale.shape, w.scale, w.shift, eps).to(x.dtype)
    activated: Tensor = getattr(F, activation)(x)
    return activated


def _stats(x: Tensor, layer: LayerWeights, out: LinearWeights, kind: GRURSSMKind) -> Tensor:
    """Logits [B, S, C], or means and raw deviations [B, 2S]."""
    stats = F.linear(_layer(x, layer, kind.activation, kind.eps), *out).to(out.weight.dtype)
    return stats.unflatten(-1, (-1, kind.classes)) if kind.classes else stats


def _latent(stats: Tensor, noise: Tensor, kind: GRURSSMKind) -> Tensor:
    """The sample: one-hot [B, S, C] with straight-through gradient, or reparameterised [B, S]."""
    if kind.classes:
        return _sample(stats, noise, kind.unimix)[0]
    mean, raw = stats.chunk(2, -1)
    return mean + (F.softplus(raw) + 0.1) * noise


def _policy_sample(out: Tensor, noise: Tensor, heads: tuple[PolicyHead, ...]) -> Tensor:
    """The encoded action [N, A] from the outputs of all heads [N, O] and their noise [N, sum of sizes]."""
    parts = []
    sizes = [head.size * (head.classes or 2) for head in heads]
    for head, x, draw in zip(heads, out.split(sizes, -1), noise.split([head.size for head in heads], -1)):
        if head.dist == "onehot":
            parts.append(_sample(x.unflatten(-1, (head.size, head.classes)), draw, 0.0)[0].flatten(-2))
        elif head.dist == "tanh_normal":
            mean, raw = x.chunk(2, -1)
            parts.append(torch.tanh(5 * torch.tanh(mean / 5) + (F.softplus(raw + head.shift) + head.min_std) * draw))
        else:
            mean, raw = x.chunk(2, -1)
            parts.append(truncated_normal(torch.tanh(mean), 2 * torch.sigmoid(raw / 2) + head.min_std, draw))
    return torch.cat(parts, -1)


def truncated_normal(mean: Tensor, std: Tensor, uniform: Tensor) -> Tensor:
    """Sample a Normal cut at -1 and 1 by its inverse CDF, clipped to +-(1 - 1e-6) straight through.

    As in the official DreamerV2, the gradient holds the standardised noise fixed: d/dmean = 1, d/dstd = noise.
    """
    with torch.no_grad():
        low, high = (torch.special.ndtr((limit - mean) / std) for limit in (-1, 1))
        noise = torch.special.ndtri(low + uniform.to(mean.dtype) * (high - low))
        noise = noise.clamp((-1 - mean) / std, (1 - mean) / std)
    sample = mean + std * noise
    return sample + (sample.clamp(-1 + 1e-6, 1 - 1e-6) - sample).detach()


TANH_NORMAL_SHIFT = math.log(math.exp(5) - 1)
"""Dreamer V1's `shift`: the policy starts with a deviation of 5 (before tanh)."""
