import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Measure = Callable[..., None]


def seconds(fn: Callable[[], Any], repeats: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # results may be published: no host name in them


@pytest.fixture(scope="session")
def bandwidth() -> float:
    """Bytes per second of a large copy, read and written: what main memory gives to the threads in use."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 9)


@pytest.fixture
def measure(benchmark: Any, bandwidth: float) -> Measure:
    """measure(fn, group=, variant=, bytes_moved=): the median time of `fn`, beside what its bytes would take.

    The limit is main memory's: data that fits a cache can beat it.
    """

    def run(fn: Callable[[], Any], *, group: str, variant: str, bytes_moved: int) -> None:
        fn()
        once = seconds(fn, 5)
        iterations = max(1, round(2e-4 / once))
        rounds = min(1000, max(10, round(0.5 / (once * iterations))))
        benchmark.group = group
        benchmark.pedantic(fn, rounds=rounds, iterations=iterations, warmup_rounds=5)
        benchmark.extra_info.update(
            variant=variant,
            bytes=bytes_moved,
            bandwidth=bandwidth,
            limit_us=1e6 * bytes_moved / bandwidth,
            threads=torch.get_num_threads(),
            cpu=cpu_name(),
            torch=torch.__version__,
        )
        if benchmark.stats is not None:
            benchmark.extra_info["percent_of_limit"] = 100 * bytes_moved / bandwidth / benchmark.stats.stats.median

    return run
