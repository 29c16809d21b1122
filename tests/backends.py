"""The backends under test: those of this machine, or the one that `pytest --backend` chose."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from fastwm import _lib
from tests import cuda_emulator  # noqa: F401  (serves the CPU where it is asked for)


class Target(NamedTuple):
    """A backend, and a device that it serves."""

    backend: str
    device: str

    @property
    def library(self) -> str:
        """The namespace of its raw operators in `torch.ops`."""
        emulated = "fastwm_emulated" if self == ("cuda", "cpu") else "fastwm"
        return "fastwm_triton" if self.backend == "triton" else emulated

    @property
    def slow(self) -> bool:
        """Whether kernels run thread by thread: sizes and repeats are then few."""
        return self in (("triton", "cpu"), ("cuda", "cpu"))

    def has_kernel(self, name: str) -> bool:
        if self.backend == "ref" or not hasattr(getattr(torch.ops, self.library), name):
            return False
        key = "CUDA" if self.device == "cuda" else "CPU"
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{self.library}::{name}", key)


needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")
CPU = pytest.param(Target("cpu", "cpu"), id="cpu", marks=needs_cpu)
# The one that `pytest --backend` asks for: conftest.py sets this before fastwm is imported.
CHOSEN = {"triton": Target("triton", "cpu"), "cuda-emulated": Target("cuda", "cpu")}.get(
    os.environ.get("FASTWM_TEST_BACKEND", "")
)
INTERPRETED = CHOSEN == ("triton", "cpu")

REF = [] if CHOSEN else [pytest.param(Target("ref", "cpu"), id="ref")]
NATIVE = [CPU]
if torch.cuda.is_available():
    NATIVE += [
        pytest.param(Target("cuda", "cuda"), id="cuda", marks=pytest.mark.gpu),
        pytest.param(Target("triton", "cuda"), id="triton-gpu", marks=pytest.mark.gpu),
    ]
if CHOSEN:
    NATIVE = [pytest.param(CHOSEN, id="triton" if INTERPRETED else "emulated")]
ISA_LEVELS = _lib.host.isa_levels() if _lib.host and not CHOSEN else []


def needs_kernel(*names: str) -> pytest.MarkDecorator:
    """For tests of operators that only some backends have: others run on the CPU by other parts, slowly."""
    missing = CHOSEN is not None and not all(CHOSEN.has_kernel(name) for name in names)
    return pytest.mark.skipif(missing, reason="no such kernel")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
