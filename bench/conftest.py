"""How benchmarks measure: medians, the time of a copy as large, and the peak memory, on the CPU or on a GPU.

`FASTWM_BENCH_DEVICE=cuda` puts every tensor a benchmark makes on the GPU; there calls are captured in a CUDA graph and
timed by its replay, or one by one with a synchronisation where they cannot be captured.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fastwm
from fastwm.errors import FastwmError
from fastwm.info import device_name, provenance

Measure = Callable[..., None]


def backend_of(variant: str) -> fastwm.ops.backend | nullcontext[None]:
    """What runs a variant: eager loops and torch.compile are PyTorch's own operators; "fused cells" are fastwm's."""
    return fastwm.backend("ref") if variant.startswith(("eager", "torch.compile")) else nullcontext()


SECONDS = float(os.environ.get("FASTWM_BENCH_SECONDS", "0.5"))  # spent on each variant
DEVICE = os.environ.get("FASTWM_BENCH_DEVICE", "auto")
if DEVICE == "auto":
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # results may be published: no host name in them


@pytest.fixture(autouse=True)
def default_device() -> Iterator[None]:
    if DEVICE != "cpu":  # a default device costs every call of eager PyTorch some time in Python
        torch.set_default_device(DEVICE)
    torch.manual_seed(0)
    yield
    torch.set_default_device(None)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(fn: Callable[[], Any], repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(fn: Callable[[], Any]) -> int:
    """The most memory that one call holds at once beyond what it was given."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fn()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def captured(fn: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """A CUDA graph of `calls` calls; what cannot be captured is called as it is."""

    def repeat() -> None:
        for _ in range(calls):
            fn()

    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            repeat()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            repeat()
    except RuntimeError:
        torch.cuda.synchronize()
        return repeat
    return graph.replay


@pytest.fixture(scope="session")
def served() -> dict[str, str | None]:
    """The library that is measured; without it, or with another fastwm than `fastwm bench` imported, nothing runs."""
    wanted = os.environ.get("FASTWM_BENCH_PACKAGE", fastwm.__file__)
    try:
        if os.environ.get("FASTWM_BACKEND") == "ref":
            raise FastwmError("FASTWM_BACKEND=ref is set: plain PyTorch would be measured as fastwm")
        if Path(wanted).resolve() != Path(fastwm.__file__).resolve():
            raise FastwmError(f"{fastwm.__file__} would be measured, not {wanted}; run this from another folder")
        return provenance(DEVICE)
    except FastwmError as error:
        pytest.exit(f"fastwm: error: {error}", 2)


class Calls(TorchDispatchMode):
    """Notes which operators of fastwm's libraries are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("fastwm"):
            self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@functools.cache
def copy_seconds(nbytes: int) -> float:
    """Median time of a warm copy that moves `nbytes`, half of them read and half written.

    The limit of a case is a copy of its own size: what fits a cache moves faster than main memory allows.
    """
    source = torch.ones(max(1, nbytes // 8))
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    calls = max(1, round(2e-4 / seconds(copy, 5)))
    if DEVICE == "cuda":
        return seconds(captured(copy, calls), 9) / calls
    return seconds(lambda: [copy() for _ in range(calls)], 9) / calls


@pytest.fixture
def measure(benchmark: Any, served: dict[str, str | None]) -> Measure:
    """measure(fn, group=, variant=, bytes_moved=, flops=): the median time of `fn`, beside that of a copy as large."""

    def run(fn: Callable[[], Any], *, group: str, variant: str, bytes_moved: int, flops: int = 0) -> None:
        operators = set[str]()
        if variant.startswith(("fastwm", "fused")):  # torch.compile cannot be called inside a dispatch mode
            with Calls() as calls_of:
                fn()
            operators = calls_of.seen
            if not operators:
                pytest.skip("plain PyTorch serves this here: nothing of fastwm to measure")
        fn()
        once = seconds(fn, 5)
        iterations = max(1, round(2e-4 / once))
        rounds = min(1000, max(10, round(SECONDS / (once * iterations))))
        calls, timed = 1, fn
        if DEVICE == "cuda":
            calls = min(100, max(1, round(2e-3 / once)))
            replay, iterations = captured(fn, calls), 1

            def timed() -> None:
                replay()
                torch.cuda.synchronize()

        peak = peak_bytes(fn)
        benchmark.group = group
        benchmark.pedantic(timed, rounds=rounds, iterations=iterations, warmup_rounds=5)
        benchmark.extra_info.update(
            variant=variant, calls=calls, bytes=bytes_moved, flops=flops,
            copy_us=1e6 * copy_seconds(bytes_moved), peak_bytes=peak, threads=torch.get_num_threads(),
            device=device_name(DEVICE), torch=torch.__version__, operators=sorted(operators), **served,
        )  # fmt: skip
        if benchmark.stats is not None:
            median = benchmark.stats.stats.median / calls
            benchmark.extra_info["percent_of_copy"] = 100 * copy_seconds(bytes_moved) / median
            benchmark.extra_info["gflops"] = flops / median / 1e9

    return run
