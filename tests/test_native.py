"""The native library: what it links to, what it knows, how it is controlled, and life without it."""

import asyncio
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastwm
from fastwm import _lib
from fastwm.ops._backend import forced_backend

ROOT = Path(fastwm.__file__).parent.parent
needs_native = pytest.mark.skipif(_lib.host is None, reason="native library not built")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")


def run(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


@needs_native
@needs_nm
@pytest.mark.parametrize("name", ["_C", "_C_cuda"])
def test_only_stable_symbols_are_imported(name: str) -> None:
    library = ROOT / "fastwm" / f"{name}.so"
    if not library.exists():
        pytest.skip(f"{name} not built")
    lines = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1] for line in lines.splitlines()}
    torch_symbols = {name for name in symbols if "@" not in name and not name.startswith(("_ITM_", "__gmon"))}
    assert all(re.match(r"(aoti_)?torch_[a-z0-9_]+$", symbol) for symbol in torch_symbols)
    versions = {re.split("@+", name)[1].split("_")[0] for name in symbols if "@" in name}
    assert versions <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC", "GOMP", "OMP"}


@needs_nm
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_kernels_of_an_instruction_set_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weak symbol compiled with AVX-512 could be the one the linker keeps, and crash a lesser CPU.

    Read are the objects that the build left, of every level; those that are missing are compiled.
    """
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    native = importlib.import_module("native")
    found = native.find_torch()
    tools = native.Toolchain(native.find_compiler(), found, ROOT / "build" / "native" / f"torch-{found.version}")
    _, kernels = native.cpu_sources()
    steps = [step for source in kernels for step in tools.compile_kernel(source)]
    assert len(steps) == len(kernels) * len(native.ISA_FLAGS) > 0
    native.run_parallel(step for step in steps if not step.output.exists())
    for step in steps:
        _, level, _ = step.output.name.split(".")
        command = ["nm", "-C", "--defined-only", step.output]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        shared = [line.split(maxsplit=2)[1:] for line in symbols if line.split()[1] in "TDBRWVu"]
        assert shared
        assert all(kind == "T" and name.startswith(f"fastwm::{level}::") for kind, name in shared), shared


@needs_native
def test_instruction_set_control() -> None:
    host = _lib.host
    assert host is not None
    assert host.isa_levels()[0] == "baseline"
    best = host.isa()
    for level in host.isa_levels():
        host.set_isa(level)
        assert host.isa() == level
    host.set_isa(best)
    with pytest.raises(ValueError, match=r"'sse9' is not available on this CPU; available: baseline"):
        host.set_isa("sse9")


@needs_native
def test_instruction_set_variable() -> None:
    show = "import fastwm; print(fastwm.info()['isa'])"
    assert run(show, FASTWM_ISA="baseline").stdout.strip() == "baseline"
    assert "FASTWM_ISA: instruction set level 'sse9' is not available" in run(show, FASTWM_ISA="sse9").stderr


@needs_native
def test_threads_are_torchs() -> None:
    assert _lib.host is not None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert _lib.host.num_threads() == 1
    torch.set_num_threads(before)


def test_backend_names() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tpu'; the backends are cpu, cuda, triton, ref"):
        fastwm.backend("tpu")
    assert "unknown backend 'tpu'" in run("import fastwm", FASTWM_BACKEND="tpu").stderr
    forced = "import fastwm, torch; x = torch.ones(2, 2); fastwm.ops.lambda_return(x, x, x)"
    assert run(forced, FASTWM_BACKEND="ref").returncode == 0
    if not torch.cuda.is_available():
        assert "backend 'cuda' does not serve torch.float32 on cpu: " in run(forced, FASTWM_BACKEND="cuda").stderr
        message = run(forced, FASTWM_BACKEND="triton", TRITON_INTERPRET="0").stderr
        assert re.search(r"backend 'triton' does not serve .*TRITON_INTERPRET=1", message)


def test_backend_nests_and_restores() -> None:
    before = forced_backend()
    ref = fastwm.backend("ref")
    with ref:
        with fastwm.backend("triton"):
            assert forced_backend() == "triton"
            with ref:
                assert forced_backend() == "ref"
            assert forced_backend() == "triton"
        assert forced_backend() == "ref"
    assert forced_backend() == before


def test_backend_is_a_threads_own() -> None:
    """Two blocks that overlap and end in the order in which they began."""
    before = forced_backend()
    entered, left = threading.Event(), threading.Event()

    def other() -> tuple[str | None, str | None]:
        with fastwm.backend("ref"):
            entered.set()
            assert left.wait(10)
            inside = forced_backend()
        return inside, forced_backend()

    with ThreadPoolExecutor(1) as pool:
        with fastwm.backend("triton"):
            future = pool.submit(other)
            assert entered.wait(10)
            assert forced_backend() == "triton"
        assert forced_backend() == before
        left.set()
        assert future.result() == ("ref", before)
    assert forced_backend() == before


def test_backend_is_a_tasks_own() -> None:
    async def child() -> str | None:
        return forced_backend()

    async def task(name: str, first: asyncio.Event, then: asyncio.Event) -> list[str | None]:
        with fastwm.backend(name):
            first.set()
            await then.wait()
            inside = [forced_backend(), await asyncio.create_task(child())]
        return [*inside, forced_backend()]

    async def both() -> list[list[str | None]]:
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("ref", one, two), task("triton", two, one))

    before = forced_backend()
    assert asyncio.run(both()) == [["ref", "ref", before], ["triton", "triton", before]]


def test_works_without_the_library(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fastwm", tmp_path / "fastwm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastwm, torch
    x = torch.full([3, 2], 0.5, requires_grad=True)
    fastwm.ops.lambda_return(x, x, x).sum().backward()
print(fastwm.__file__)
print([str(w.message) for w in caught if "fastwm" in str(w.message)])
print(fastwm.info()["library _C"])
"""
    done = run(code, cwd=tmp_path, PYTHONPATH=str(tmp_path), FASTWM_ISA="", FASTWM_BACKEND="")
    where, warned, reason = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert warned.count("native library _C is not available (not built)") == 1
    assert warned.count("', '") == 0
    assert reason == "not built"


@needs_native
def test_an_unbuilt_tree_that_hides_an_installed_package_says_so(tmp_path: Path) -> None:
    """As in a checkout after `pip install .`: Python looks into the current folder first."""
    shutil.copytree(ROOT / "fastwm", tmp_path / "fastwm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import fastwm; print(fastwm.info()['hides']); print(fastwm.info.doctor().splitlines()[-1])"
    done = run(code, cwd=tmp_path, PYTHONPATH=str(ROOT), FASTWM_ISA="", FASTWM_BACKEND="")
    hides, advice = done.stdout.splitlines()
    assert hides == str(ROOT / "fastwm")
    assert advice.startswith(f"{tmp_path} is not built and hides the fastwm installed in {ROOT}. Use another folder")
    assert advice in done.stderr


def test_an_old_setuptools_is_one_line() -> None:
    code = "import setuptools; setuptools.__version__ = '70.2.0'; import backend"
    done = run(code, PYTHONPATH=str(ROOT / "build_tools"))
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "fastwm: the build needs setuptools 77 or newer, found 70.2.0: pip install 'setuptools>=77'"
    )


def test_info_and_doctor() -> None:
    facts = fastwm.info()
    assert facts["torch"] == torch.__version__
    text = fastwm.info.doctor()  # type: ignore[attr-defined]
    assert len(text.splitlines()) == len(facts)
    assert all(name in text for name in facts)
