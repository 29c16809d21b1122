from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastwm.ref.mlp import mlp
from fastwm.ref.rssm_observe import _gru, _sample
from fastwm.weights import ActionHead, MLPWeights, RSSMWeights


def rssm_imagine(
    deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor, w: RSSMWeights, prior: MLPWeights, actor: MLPWeights,
    heads: tuple[ActionHead, ...], unimix: float = 0.01, policy_unimix: float = 0.0, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The imagined rollout: see `fastwm.ops.rssm_imagine`."""
    with torch.no_grad():
        states, actions, all_logits = [(deter, stoch)], [], []
        for step in range(len(noise)):
            out = mlp(deter, actor, stoch.flatten(1), eps)
            actions.append(_sample_action(out.to(deter.dtype), noise[step], heads, policy_unimix))
            if step < len(uniform):
                deter, stoch, logits = _step(deter, stoch, uniform[step], actions[-1], w, prior, unimix, eps)
                states.append((deter, stoch))
                all_logits.append(logits)
        deters, stochs = map(torch.stack, zip(*states))
        return deters, stochs, torch.stack(all_logits), torch.stack(actions)


def rssm_open_loop(
    deter: Tensor, stoch: Tensor, uniform: Tensor, action: Tensor, w: RSSMWeights, prior: MLPWeights,
    unimix: float = 0.01, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The rollout with given actions: see `fastwm.ops.rssm_open_loop`."""
    states = []
    for step in range(len(action)):
        states.append(_step(deter, stoch, uniform[step], action[step], w, prior, unimix, eps))
        deter, stoch, _ = states[-1]
    deters, stochs, all_logits = map(torch.stack, zip(*states))
    return deters, stochs, all_logits


def _step(
    deter: Tensor, stoch: Tensor, uniform: Tensor, action: Tensor, w: RSSMWeights, prior: MLPWeights, unimix: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The prior's next state, and its logits."""
    deter = _gru(deter, stoch.flatten(1), action, w, eps)
    logits = mlp(deter, prior, eps=eps).unflatten(-1, stoch.shape[1:])
    return deter, _sample(logits, uniform, unimix)[0], logits


def _sample_action(
    out: Tensor, noise: Tensor, heads: tuple[ActionHead, ...], unimix: float, sample: Callable[..., Any] = _sample
) -> Tensor:
    """The encoded action [N, A] from the outputs of all heads [N, O] and their noise [N, sum of sizes]."""
    parts = []
    sizes = [head.size * (head.classes or 2) for head in heads]
    for head, x, draw in zip(heads, out.split(sizes, -1), noise.split([head.size for head in heads], -1)):
        if head.classes:
            onehot = sample(x.unflatten(-1, (head.size, head.classes)), draw, unimix)[0]
            parts.append(onehot.flatten(-2))
        else:
            mean, std = x.chunk(2, -1)
            parts.append(torch.tanh(mean) + (0.9 * torch.sigmoid(std + 2) + 0.1) * draw)
    return torch.cat(parts, -1)
