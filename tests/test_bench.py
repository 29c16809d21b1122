"""Benchmarks: they measure the library they name, say which it was, or do not run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastwm
from bench.report import families, table
from fastwm import _lib
from fastwm.cli import main
from fastwm.info import provenance

ROOT = Path(fastwm.__file__).parent.parent
needs_native = pytest.mark.skipif(not _lib.has_cpu, reason="native library not built")


def error_of(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.startswith("fastwm: error: ") and "\n" not in error, error
    return error


@pytest.mark.parametrize("what", ["update", "philox"])
def test_nothing_is_measured_without_the_library(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastwm.ops._backend.select", lambda *_: None)
    monkeypatch.setitem(_lib.problems, "_C", "not built")
    monkeypatch.delenv("FASTWM_BACKEND", raising=False)
    error = error_of(main(["bench", what, "--device", "cpu"]), capsys)
    assert "nothing to measure: fastwm's library _C is not available (not built)" in error


def test_plain_pytorch_is_measured_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastwm.ops._backend.select", lambda *_: None)
    monkeypatch.setenv("FASTWM_BACKEND", "ref")
    assert provenance("cpu")["library"] == "none: plain PyTorch"


@needs_native
def test_the_figures_say_which_library_served() -> None:
    facts = provenance("cpu")
    assert facts["fastwm"] == fastwm.__version__ and str(facts["library"]).endswith("fastwm/_C.so")
    assert not str(facts["library"]).startswith(str(Path.home()))


def test_a_missing_pytest_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *x: None if name == "pytest" else found(name, *x))
    assert "pip install '.[dev]'" in error_of(main(["bench", "philox"]), capsys)


@needs_native
def test_a_checkout_s_benchmarks_measure_the_installed_library(tmp_path: Path) -> None:
    """In the unbuilt tree of a checkout, by the `fastwm` that is installed elsewhere."""
    for name in ("fastwm", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"))
    command = [sys.executable, "-P", "-m", "fastwm.cli", "bench", "philox", "--device", "cpu", "--json", "out/x.json"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site/fastwm").symlink_to(ROOT / "fastwm")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # xdist's
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "FASTWM_BACKEND": "", "FASTWM_BENCH_SECONDS": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    file = tmp_path / "out/x.json"
    for bench in json.loads(file.read_text())["benchmarks"]:
        facts = bench["extra_info"]
        assert facts["library"] == "site/fastwm/_C.so" and facts["fastwm"] == fastwm.__version__
        assert facts["library_commit"] == provenance("cpu")["library_commit"]
        assert facts["operators"] if facts["variant"] == "fastwm" else not facts["operators"]
    (_, groups) = families(file).popitem()
    assert f"fastwm {fastwm.__version__}, commit " in table("philox", groups)
