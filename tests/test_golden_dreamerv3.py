"""DreamerV3 equals the official code: two recorded updates, every value, gradient and parameter."""

from pathlib import Path

import pytest

from tests.golden_dreamerv3 import Golden

FILES = sorted(Path(__file__).parent.joinpath("golden").glob("dreamerv3_*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_replays_the_official_updates(path: Path) -> None:
    checks = Golden(path).replay()
    for part in ("wm/", "imag/", "replay/", "loss/", "grad/", "params1/", "params2/slowval/", "state/retnorm"):
        assert any(part in check.name for check in checks), f"nothing compared under {part}"
    failed = [f"{check.name}: {check.error:.2e}" for check in checks if not check.ok]
    assert not failed, failed


def test_the_check_notices_a_changed_weight() -> None:
    golden = Golden(FILES[0])
    golden.agent.rssm.core.gates.bias.data[0] += 0.1
    assert any(not check.ok for check in golden.replay())
