"""DreamerV3's imagined rollout against the loop over its plain modules: 1024 rows, 15 steps, a continuous actor."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.testing import assert_close

from bench.conftest import DEVICE, Measure, backend_of
from fastwm.nn import Actor, BlockRSSM, State
from fastwm.nn.spaces import as_dict, encode
from fastwm.ops import rssm_imagine

H, N, ACTION = 15, 1024, 6
SIZES = {  # deter, hidden, stoch, classes
    "size1m": (512, 64, 32, 4),
    "size12m": (2048, 256, 32, 16),
}


@pytest.mark.parametrize("name", ["fastwm", "eager", "fused cells", "fastwm bf16", "eager bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_rssm_imagine(measure: Measure, size: str, name: str) -> None:
    torch.manual_seed(0)
    space = as_dict(spaces.Box(-1, 1, (ACTION,), np.float32), "action")
    rssm = BlockRSSM(8, ACTION, *SIZES[size])
    actor = Actor(rssm.feat_dim, SIZES[size][1], 3, space, 0.01, 0.0)
    start = State(torch.randn(N, rssm.deter).tanh(), rssm.initial(N).stoch)
    uniform, normal = torch.rand(H, N, rssm.stoch), torch.randn(H + 1, N, ACTION)

    def policy(state: State, step: int) -> tuple[dict[str, Tensor], Tensor]:
        action = actor(state.feat).sample({"action": normal[step]})
        return action, encode(space, action)

    def loop() -> Tensor:
        state, deters = start, []
        for step in range(H):
            state, _ = rssm.open_loop_step(state, policy(state, step)[1], uniform[step])
            deters.append(state.deter)
        policy(state, H)
        return torch.stack(deters)

    def fused() -> Tensor:
        heads = tuple(actor.specs.values())
        weights = (rssm.observe_weights(), rssm.prior_weights(), actor.params, heads)
        return rssm_imagine(*start, uniform, normal, *weights)[0]

    fn = fused if name.startswith("fastwm") else loop

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled="bf16" in name), backend_of(name):
            return fn()

    with torch.no_grad():
        # One flipped sample parts two trajectories, so only the first step is compared here.
        assert_close(fused()[1], loop()[0])
    arrays = rssm.deter + 2 * rssm.stoch * rssm.classes + rssm.stoch + ACTION  # written, and the noise read
    measure(run, group=size, variant=name, bytes_moved=4 * H * N * arrays)
