import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

import fastwm
from fastwm import _lib
from tests import cuda_emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: an element that a kernel forgets to write, or reads too early, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Target(NamedTuple):
    """A backend, and a device that it serves."""

    backend: str
    device: str

    @property
    def library(self) -> str:
        emulated = "fastwm_emulated" if self == ("cuda", "cpu") else "fastwm"
        return "fastwm_triton" if self.backend == "triton" else emulated


REF = [pytest.param(Target("ref", "cpu"), id="ref")]
NATIVE = [
    pytest.param(Target("cpu", "cpu"), id="cpu", marks=pytest.mark.skipif(not _lib.has_cpu, reason="not built")),
    pytest.param(Target("cuda", "cuda"), id="cuda", marks=pytest.mark.gpu),
    pytest.param(Target("triton", "cuda"), id="triton-gpu", marks=pytest.mark.gpu),
    *([pytest.param(Target("triton", "cpu"), id="triton")] if INTERPRETED else []),
    *([pytest.param(Target("cuda", "cpu"), id="emulated")] if cuda_emulator.loaded else []),
]


@pytest.fixture(params=REF + NATIVE)
def on(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend in turn, forced for the test's duration."""
    with fastwm.backend(request.param.backend):
        yield request.param


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend but the reference in turn, forced for the test's duration."""
    with fastwm.backend(request.param.backend):
        yield request.param
