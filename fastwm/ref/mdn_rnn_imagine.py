import torch
from torch import Tensor
from torch.nn import functional as F

from fastwm.ref.cells import lstm_gates
from fastwm.ref.mdn import mdn_sample
from fastwm.ref.philox import philox_normal, philox_uniform
from fastwm.weights import MDNRNNWeights, Rollouts


@torch.no_grad()
def mdn_rnn_imagine(
    z: Tensor, controllers: Tensor, controller_bias: Tensor | None, w: MDNRNNWeights, seed_offset: Tensor, steps: int,
    extra: tuple[str, ...] = (), temperature: float = 1.0, squash: str = "tanh", forget_bias: float = 0.0,
    order: str = "ifgo", trajectories: bool = False,
) -> Rollouts:  # fmt: skip
    """N dreams: see `fastwm.ops.mdn_rnn_imagine`."""
    (N, Z), (P, A, _), H = z.shape, controllers.shape, w.weight_hh.shape[1]
    candidate = torch.arange(P, device=z.device).repeat_interleave(N // P)
    has_restart = w.weight_ih.shape[1] > Z + A
    alive = torch.arange(N, device=z.device)  # the rows that still dream; z, h and c hold these alone
    h = c = z.new_zeros(N, H)
    lengths, returns = torch.zeros_like(alive), z.new_zeros(N)
    zs, actions, dones = z.new_zeros(steps, N, Z), z.new_zeros(steps, N, A), alive.new_zeros(steps, N, dtype=torch.bool)
    for step in range(steps):
        if len(alive) == 0:
            break
        action = _act(z, h, c, controllers, controller_bias, candidate[alive], squash)
        restart = [z.new_full((len(z), 1), float(step == 0))] if has_restart else []
        x = torch.cat([z, action, *restart], -1)
        h, c = lstm_gates(F.linear(x, w.weight_ih, w.bias), F.linear(h, w.weight_hh), c, forget_bias, order)
        out = F.linear(h, w.out_weight, w.out_bias).to(z.dtype)
        heads = dict(zip(extra, out.T))
        logits, mean, log_std = out[:, len(extra) :].unflatten(-1, (Z, 3, -1)).unbind(-2)
        stream = seed_offset[alive] + seed_offset.new_tensor([0, step])
        uniform = philox_uniform(stream, Z).to(z.dtype)
        normal = philox_normal(stream, Z, first=(Z + 3) // 4).to(z.dtype)  # the stream's blocks after the uniform's
        z = mdn_sample(logits, mean, log_std, uniform, normal, temperature)
        end = heads.get("done", torch.full_like(returns[alive], -1))
        done = end > 0
        lengths[alive] += 1
        reward = heads.get("reward", torch.ones_like(end))
        returns[alive] += torch.where(end.isnan(), end, reward)  # never to end must not pay
        if trajectories:
            zs[step, alive], actions[step, alive], dones[step, alive] = z, action, done
        z, h, c, alive = z[~done], h[~done], c[~done], alive[~done]
    return Rollouts(lengths, returns, *((zs, actions, dones) if trajectories else (None, None, None)))


def _act(
    z: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor | None, candidate: Tensor, squash: str
) -> Tensor:
    """Each row's action from its own controller, whose width tells which features it reads."""
    Z, H = z.shape[-1], h.shape[-1]
    features = {Z: [z], Z + H: [z, h], Z + 2 * H: [z, c, h]}[weight.shape[-1]]
    action = torch.einsum("naf,nf->na", weight[candidate], torch.cat(features, -1))
    action = torch.tanh(action if bias is None else action + bias[candidate])
    if squash == "car":
        steering, gas, brake = action.unbind(-1)
        action = torch.stack([steering, (gas + 1) / 2, brake.clamp(0, 1)], -1)
    return action.to(z.dtype)
