"""The observe sequence of PlaNet, V1 and V2 against the plain loop under autograd, B = 16, T = 64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from bench.conftest import DEVICE, Measure, backend_of
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
from fastwm.ops import gru_rssm_observe

T, B, ACTION = 64, 16, 6
SIZES = {  # variant, tokens, deter, hidden, stoch
    "planet": ("planet", 1024, 200, 200, 30),
    "v1": ("dreamer_v1", 1024, 200, 200, 30),
    "v2 200": ("dreamer_v2", 1536, 200, 200, 32),
    "v2 600": ("dreamer_v2", 1536, 600, 600, 32),
    "v2 1024": ("dreamer_v2", 1536, 1024, 1024, 32),
}


@pytest.mark.parametrize("name", ["fastwm", "eager", "fastwm bf16", "eager bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("size", SIZES)
def test_gru_rssm_observe(measure: Measure, size: str, backward: bool, name: str) -> None:
    torch.manual_seed(0)
    variant, width, *widths = SIZES[size]
    rssm = GRURSSM(VARIANTS[variant], width, ACTION, *widths)
    tokens = torch.randn(T, B, width, requires_grad=backward)
    args = (tokens, torch.randn(T, B, ACTION), torch.rand(T, B) < 0.02, *rssm.initial(B), rssm.noise(T, B))

    def outputs() -> tuple[Tensor, ...]:
        return gru_rssm_observe(*args, rssm.weights, rssm.kind)

    cotangents = [torch.randn_like(x) for x in outputs()]
    leaves = [tokens, *(p for n, p in rssm.named_parameters() if not n.startswith("prior"))]

    def run() -> None:
        for x in leaves:
            x.grad = None
        with (
            torch.set_grad_enabled(backward),
            torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name),
            backend_of(name),
        ):
            out = outputs()
            if backward:
                torch.autograd.backward(out, cotangents)

    with torch.no_grad():
        ours = outputs()[0][0]
        with fastwm.backend("ref"):
            # One flipped sample parts two trajectories, so only the first step is compared here.
            assert_close(ours, outputs()[0][0])
    weights = 4 * sum(p.numel() for p in leaves[1:])
    passes = 3 if backward else 1  # weights read at every step, and once more with their gradients
    measure(run, group=f"{size} {'forward+backward' if backward else 'forward'}", variant=name,
            bytes_moved=passes * T * weights)  # fmt: skip
