"""DreamerV3's observe sequence against the loop over its plain modules, B = 16, T = 64."""

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import DEVICE, Measure, backend_of
from fastwm.nn import BlockRSSM, State

Step = Callable[..., tuple[State, Tensor]]
T, B, ACTION = 64, 16, 6
SIZES = {  # tokens, deter, hidden, stoch, classes
    "size1m": (64, 512, 64, 32, 4),
    "size12m": (256, 2048, 256, 32, 16),
    "size200m": (1024, 8192, 1024, 32, 64),
}


def loop(step: Step, state: State, action: Tensor, tokens: Tensor, first: Tensor, uniform: Tensor) -> list[Tensor]:
    """As the peers write it: one step after the other, stacked."""
    states, logits = [], []
    for t in range(len(tokens)):
        state, logit = step(state, action[t], tokens[t], first[t], uniform[t])
        states.append(state)
        logits.append(logit)
    return [*(torch.stack(part) for part in zip(*states)), torch.stack(logits)]


def fused(rssm: BlockRSSM, *args: Tensor) -> list[Tensor]:
    state, logits = rssm.observe(*args)
    return [*state, logits]


VARIANTS = ["fastwm", "eager", "fused cells", "fastwm bf16", "fastwm cluster bf16", "eager bf16", "torch.compile bf16"]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("size", SIZES)
def test_rssm_observe(measure: Measure, monkeypatch: pytest.MonkeyPatch, size: str, backward: bool, name: str) -> None:
    if DEVICE != "cuda" and (size == "size200m" or "compile" in name):
        pytest.skip("minutes a call, or minutes to compile, without a GPU")
    if "cluster" in name and (DEVICE != "cuda" or size != "size1m"):
        pytest.skip("one cluster holds size1m, on a GPU that has clusters")
    monkeypatch.setattr(sys.modules["fastwm.ops.rssm_observe"], "CLUSTERS", "cluster" in name)
    torch.manual_seed(0)
    tokens_width, *widths = SIZES[size]
    rssm = BlockRSSM(tokens_width, ACTION, *widths)
    tokens = torch.randn(T, B, tokens_width, requires_grad=backward)
    first = torch.rand(T, B) < 0.02
    args = (rssm.initial(B), torch.randn(T, B, ACTION), tokens, first, torch.rand(T, B, rssm.stoch))
    fn: Callable[..., list[Tensor]] = partial(fused, rssm)
    if not name.startswith("fastwm"):
        step = rssm.observe_step
        if "compile" in name:  # the step alone, since 64 of them take minutes; then captured like all others
            torch.set_default_device(None)  # under one Dynamo cannot trace unflatten
            torch._dynamo.reset()
            step = torch.compile(step, fullgraph=True, dynamic=False)
        fn = partial(loop, step)
    cotangents = [torch.randn_like(x) for x in fused(rssm, *args)]
    leaves = [tokens, *(p for n, p in rssm.named_parameters() if not n.startswith("prior"))]

    def run() -> None:
        for x in leaves:
            x.grad = None
        with torch.set_grad_enabled(backward), torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name):
            with backend_of(name):
                outputs = fn(*args)
            if backward:
                torch.autograd.backward(outputs, cotangents)

    with torch.no_grad():
        # One flipped sample parts two trajectories, so only the first step is compared here.
        assert_close(fused(rssm, *args)[0][0], loop(rssm.observe_step, *args)[0][0])
    weights = 4 * sum(p.numel() for p in leaves[1:])
    passes = 3 if backward else 1  # weights read at every step, and once more with their gradients
    measure(run, group=f"{size} {'forward+backward' if backward else 'forward'}", variant=name,
            bytes_moved=passes * T * weights)  # fmt: skip
