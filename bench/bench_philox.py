"""Counter-based noise for 1024 dreams, a stream each, against torch's generator, which has one stream for all."""

import pytest
import torch

from bench.conftest import Measure
from fastwm.ops import philox_normal, philox_uniform

DREAMS = 1024


@pytest.mark.parametrize("name", ["fastwm", "eager"])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("latents", [32, 64])
def test_philox(measure: Measure, latents: int, kind: str, name: str) -> None:
    streams = torch.stack([torch.full((DREAMS,), 7), torch.arange(DREAMS) << 32], -1)
    ours, torchs = {"uniform": (philox_uniform, torch.rand), "normal": (philox_normal, torch.randn)}[kind]
    run = (lambda: ours(streams, latents)) if name == "fastwm" else (lambda: torchs(DREAMS, latents))
    group = f"{kind} [{DREAMS}, {latents}]"
    measure(run, group=group, variant=name, bytes_moved=DREAMS * latents * 4)
