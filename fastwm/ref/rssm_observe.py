import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.block_gru_scan import _dense, block_gru_step
from fastwm.ref.categorical import _last_drawable, _one_hot
from fastwm.weights import BlockGRUWeights, RSSMWeights


def rssm_observe(
    tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, uniform: Tensor, w: RSSMWeights,
    unimix: float = 0.01, eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The observe sequence: see `fastwm.ops.rssm_observe`."""
    deter, stoch = deter.detach(), stoch.detach()
    outputs = []
    for t in range(len(tokens)):
        first = is_first[t, :, None]
        deter, past, led = (x.masked_fill(first, 0) for x in (deter, stoch.flatten(1), action[t]))
        deter = _gru(deter, past, led, w, eps)
        post = _dense(torch.cat([deter, tokens[t]], -1), w.post, eps)
        logits = F.linear(post, *w.logits).unflatten(-1, stoch.shape[1:])
        stoch, index = _sample(logits, uniform[t], unimix)
        outputs.append((deter, stoch, index, logits))
    deters, stochs, indices, all_logits = map(torch.stack, zip(*outputs))
    return deters, stochs, indices, all_logits


def _gru(deter: Tensor, stoch: Tensor, action: Tensor, w: RSSMWeights, eps: float) -> Tensor:
    """`h' = u c + (1 - u) h`: deter [B, D], stoch [B, S*C], action [B, A] -> [B, D]."""
    action = action / action.abs().clamp(min=1).detach()
    core = BlockGRUWeights(w.embed_deter, (w.embed_stoch, w.embed_action), (w.hidden,), w.gates)
    return block_gru_step((stoch, action), deter, core, eps=eps)


def _sample(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """One-hot [B, S, C] and index [B, S] by the inverse CDF; the gradient is that of the mixed probabilities."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    classes = logits.shape[-1]
    probs = (1 - unimix) * F.softmax(logits, -1) + unimix / classes
    index = (probs.detach().cumsum(-1)[..., :-1] <= uniform[..., None]).sum(-1)
    return _one_hot(_last_drawable(index, probs.detach()), probs, uniform)
