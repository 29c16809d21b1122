"""1024 World Models dreams, 64 candidates of 16 rollouts, against the same loop over batched torch operators.

A dream step is 2 (I + H) 4H + 2 H (extra + 3 Z K) FLOP of products: 0.84 MFLOP of the car, 3.35 of Doom. In `ends`
dreams last 14 steps on average; the loop drops the rows that ended, too.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.conftest import DEVICE, Measure
from fastwm.ops import MDNRNNWeights, mdn_rnn_imagine

P, ROLLOUTS, K = 64, 16, 5
TASKS = {  # Z, A, H, extra outputs, bias of the done logit, steps
    "car": (32, 3, 256, 0, 0.0, 40),
    "doom": (64, 1, 512, 1, -20.0, 20),
    "doom, ends": (64, 1, 512, 1, -1.0, 100),
}


@pytest.mark.parametrize("name", ["fastwm", "eager", "fastwm bf16", "eager bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_mdn_rnn_imagine(measure: Measure, task: str, name: str) -> None:
    Z, A, H, extra, done_bias, steps = TASKS[task]
    inputs, outputs, N = Z + A + extra, extra + 3 * Z * K, P * ROLLOUTS
    shapes = ((4 * H, inputs), (4 * H, H), (4 * H,), (outputs, H), (outputs,))
    w = MDNRNNWeights(*((torch.rand(shape) * 2 - 1) / H**0.5 for shape in shapes))
    w.out_weight[:extra] *= 20
    w.out_bias[:extra] = done_bias
    controllers = 0.1 * torch.randn(P, A, Z + (2 * H if extra else H))
    z = torch.randn(N, Z)
    stream = torch.stack([torch.full((N,), 1), torch.arange(N) << 32], -1)

    def fused() -> Tensor:
        squash = "tanh" if extra else "car"
        heads = ("done",) if extra else ()
        return mdn_rnn_imagine(
            z, controllers, None, w, stream, steps, heads, 1.15, squash, forget_bias=1, order="ijfo"
        ).lengths  # fmt: skip

    def loop() -> Tensor:
        return eager(z, controllers, w, steps, extra, 1.15)

    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name):
        fn = fused if name.startswith("fastwm") else loop
        taken = int(fn().sum())
        flops = taken * 2 * (4 * H * (inputs + H) + H * outputs)
        measure(fn, group=task, variant=name, bytes_moved=4 * N * Z, flops=flops)
    print(f"{task}, {name}: {taken} dream steps, {flops / taken / 1e6:.2f} MFLOP each")


def eager(z: Tensor, controllers: Tensor, w: MDNRNNWeights, steps: int, extra: int, temperature: float) -> Tensor:
    """Steps taken by each dream; rows that ended are dropped."""
    N, H = len(z), w.weight_hh.shape[1]
    alive, lengths = torch.arange(N), torch.zeros(N, dtype=torch.int64)
    weight = torch.cat([w.weight_ih, w.weight_hh], -1)
    bias = w.bias + torch.tensor([0, 0, 1, 0]).repeat_interleave(H)  # of the forget gate
    h = c = torch.zeros(N, H)
    for step in range(steps):
        features = torch.cat([z, c, h] if extra else [z, h], -1)
        if len(alive) == N:
            action = torch.bmm(features.view(P, ROLLOUTS, -1), controllers.mT).view(N, -1).tanh()
        else:
            action = torch.bmm(controllers[alive // ROLLOUTS], features.unsqueeze(-1)).squeeze(-1).tanh()
        if not extra:
            action = torch.stack([action[:, 0], (action[:, 1] + 1) / 2, action[:, 2].clamp(0, 1)], -1)
        restart = [torch.full((len(z), 1), float(step == 0))] if extra else []
        gates = F.linear(torch.cat([z, action.to(z.dtype), *restart, h], -1), weight, bias).float()
        i, g, f, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out = F.linear(h, w.out_weight, w.out_bias).float()
        logits, mean, log_std = out[:, extra:].unflatten(-1, (-1, 3, K)).unbind(-2)
        cumulated = torch.softmax(logits / temperature, -1).cumsum(-1)
        index = (cumulated[..., :-1] <= torch.rand(*z.shape, 1)).sum(-1, keepdim=True)
        std = log_std.gather(-1, index).squeeze(-1).exp() * temperature**0.5
        z = mean.gather(-1, index).squeeze(-1) + std * torch.randn(z.shape)
        lengths[alive] += 1
        if extra:
            lives = out[:, 0] <= 0
            if not lives.all():
                z, h, c, alive = z[lives], h[lives], c[lives], alive[lives]
                if len(alive) == 0:
                    break
    return lengths
