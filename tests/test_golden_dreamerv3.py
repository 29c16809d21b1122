"""DreamerV3 equals the official code: two recorded updates, every value, gradient and parameter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastwm
from fastwm import _lib
from fastwm.nn import layers
from tests.golden_dreamerv3 import Golden

FILES = sorted(Path(__file__).parent.joinpath("golden").glob("dreamerv3_*.npz"))


@pytest.mark.parametrize("few_rows", [0, 256], ids=["fused", "by_layers"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_replays_the_official_updates(path: Path, few_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FEW_ROWS", few_rows)
    checks = Golden(path).replay()
    for part in ("wm/", "imag/", "replay/", "loss/", "grad/", "params1/", "params2/slowval/", "state/retnorm"):
        assert any(part in check.name for check in checks), f"nothing compared under {part}"
    failed = [f"{check.name}: {check.error:.2e}" for check in checks if not check.ok]
    assert not failed, failed


def test_the_check_notices_a_changed_weight() -> None:
    golden = Golden(FILES[0])
    golden.agent.rssm.core.gates.bias.data[0] += 0.1
    assert any(not check.ok for check in golden.replay())


@pytest.mark.parametrize("name", ["cpu", "ref"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_every_backend(path: Path, name: str) -> None:
    if name == "cpu" and not _lib.has_cpu:
        pytest.skip(f"no native library: {_lib.problems.get('_C')}")
    with fastwm.backend(name):
        failed = [check.name for check in Golden(path).replay() if not check.ok]
    assert not failed


@pytest.mark.skipif(not _lib.has_cpu, reason="needs Triton beside the native library")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_interpreted_triton(path: Path) -> None:
    """Triton's interpreter must be chosen before import."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.golden_dreamerv3", str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTWM_BACKEND": "triton"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
