"""How long an update takes on this machine, on synthetic data of the usual shape."""

import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import DreamerV3, DreamerV3Config
from fastwm.errors import FastwmError
from fastwm.info import info, provenance
from fastwm.runner.config import TrainConfig, resolve_device, with_presets
from fastwm.runner.graph import WARM_UP, GraphedUpdate, fastest_update

BATCH, LENGTH = 16, 64
VECTORS = {"orientations": (14,), "height": (), "velocity": (9,)}
ACTION = spaces.Box(-1, 1, (6,), np.float32)


def obs_space(kind: str) -> dict[str, spaces.Space]:
    """Walker-like vectors, or one 64x64 image."""
    if kind == "image":
        return {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}
    if kind == "vector":
        return {key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in VECTORS.items()}
    raise FastwmError(f"unknown observations {kind!r}; there is: vector, image")


def synthetic_batch(agent: DreamerV3, device: torch.device) -> dict[str, Tensor]:
    """Random rows [1+T, B, ...] with one reset in a hundred."""
    rows, c = (LENGTH + 1, BATCH), agent.config
    batch: dict[str, Tensor] = {
        "action": torch.rand(*rows, 6) * 2 - 1,
        "reward": torch.randn(rows),
        "is_first": torch.rand(rows) < 0.01,
        "is_last": torch.zeros(rows, dtype=torch.bool),
        "is_terminal": torch.zeros(rows, dtype=torch.bool),
        "deter": torch.randn(*rows, c.deter).tanh(),
        "stoch": torch.randint(c.classes, (*rows, c.stoch), dtype=torch.uint8),
    }
    for key, space in agent.obs_space.items():
        shape = (*rows, *(space.shape or ()))
        is_image = space.dtype == np.uint8
        batch[key] = torch.randint(256, shape, dtype=torch.uint8) if is_image else torch.randn(shape)
    return {key: value.to(device) for key, value in batch.items()}


def measure_update(
    size: str, obs: str, precision: str, device_name: str = "auto", repeats: int = 7, graph: bool = True
) -> dict[str, Any]:
    """Median milliseconds of a whole DreamerV3 update (B=16, T=64, H=15) after a warm-up, and what it ran on.

    On a GPU it is a CUDA graph, as in training, unless `graph` is false; the batch is on the device. Raises FastwmError
    where the native library is missing.
    """
    device = resolve_device(device_name)
    served = provenance(str(device))
    config = with_presets(TrainConfig(DreamerV3Config()), "dreamer_v3", [size]).agent
    if precision not in ("fp32", "bf16"):
        raise FastwmError(f"unknown precision {precision!r}; there is: fp32, bf16")
    config.precision = precision
    torch.manual_seed(0)
    agent = DreamerV3(obs_space(obs), ACTION, config).to(device)
    batch = synthetic_batch(agent, device)
    update = fastest_update(agent) if graph else agent.update
    for _ in range(WARM_UP + 1 if isinstance(update, GraphedUpdate) else 2):
        update(batch)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = [seconds(lambda: update(batch), device) for _ in range(max(5, repeats))]
    return {
        "agent": "dreamer_v3", "size": size, "obs": obs, "precision": precision, "batch": BATCH, "length": LENGTH,
        "horizon": config.imag_length, "parameters": sum(p.numel() for p in agent.parameters() if p.requires_grad),
        "median_ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "repeats": len(times),
        "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "graph": isinstance(update, GraphedUpdate), "machine": platform.machine(),
        "peak_bytes": torch.cuda.max_memory_reserved(device) if on_gpu else None,
        "torch": torch.__version__, "isa": info().get("isa"),
    } | served  # fmt: skip


def seconds(fn: Any, device: torch.device) -> float:
    start = time.perf_counter()
    fn()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
