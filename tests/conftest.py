import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=["triton", "cuda-emulated"],
        help="run only the tests of kernels, on the CPU: Triton's under its interpreter, or CUDA's under the emulator",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Both are chosen by the environment when fastwm is imported, which is later than this."""
    chosen = config.getoption("--backend")
    os.environ["FASTWM_TEST_BACKEND"] = chosen or ""
    if chosen == "triton":
        os.environ["TRITON_INTERPRET"] = "1"
    elif chosen == "cuda-emulated" and not hasattr(config, "workerinput"):  # once, not in every process of xdist
        script = Path(__file__).parent / "cuda_emulator" / "build.py"
        built = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
        os.environ["FASTWM_CUDA_EMULATOR"] = built.stdout.strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if config.getoption("--backend"):  # what takes no backend is tested without the option
        items[:] = [item for item in items if {"on", "native"} & set(getattr(item, "fixturenames", ()))]
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`on`: every backend in turn; `native`: all but the reference; `cpu`: ours there; `isa`: instruction sets."""
    from tests.backends import CPU, ISA_LEVELS, NATIVE, REF

    for name, params in (("on", REF + NATIVE), ("native", NATIVE), ("cpu", [CPU]), ("isa", ISA_LEVELS)):
        if name in metafunc.fixturenames and not hasattr(metafunc.cls, name):
            metafunc.parametrize(name, params, indirect=True)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: an element that a kernel forgets to write, or reads too early, shows."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A backend, forced for the test's duration."""
    import fastwm

    with fastwm.backend(request.param.backend):
        yield request.param


native = cpu = on


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, for the test's duration."""
    from fastwm import _lib

    assert _lib.host is not None
    before = _lib.host.isa()
    _lib.host.set_isa(request.param)
    yield request.param
    _lib.host.set_isa(before)
