"""The CUDA kernels without a GPU: every operator's own tests, on csrc/cuda compiled for the emulator."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fastwm import _lib
from tests.cuda_emulator.build import build

HERE = Path(__file__).parent
FAMILIES = sorted(
    path for path in HERE.glob("test_*.py") if ": Target" in path.read_text() and path.name != Path(__file__).name
)


@pytest.fixture(scope="session")
def emulator() -> Path:
    if not _lib.has_cpu or platform.machine() != "x86_64":
        pytest.skip("the emulator needs the native library on x86-64")
    return build()


def test_every_operator_with_a_kernel_is_tested() -> None:
    assert len(FAMILIES) >= 10


def test_emulated_kernels(emulator: Path) -> None:
    """What is wrong in a kernel's indices, order or barriers shows here; races and speed need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-k",
        "emulated",
        "-p",
        "no:cacheprovider",
        *map(str, FAMILIES),
    ]
    environment = os.environ | {"FASTWM_CUDA_EMULATOR": str(emulator), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
