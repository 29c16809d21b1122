"""PlaNet, Dreamer V1 and DreamerV2 equal the official codes: two recorded updates, every value, gradient, parameter."""

from pathlib import Path

import pytest

from fastwm.nn import layers
from tests import golden_dreamerv1, golden_dreamerv2, golden_planet
from tests.replaying import Check

FOLDER = Path(__file__).parent / "golden"
FILES = [
    *((golden_dreamerv2, path) for path in sorted(FOLDER.glob("dreamerv2_*.npz"))),
    *((golden_dreamerv1, path) for path in sorted(FOLDER.glob("dreamerv1*.npz"))),
    (golden_planet, FOLDER / "planet_rssm.npz"),
]


def failures(checks: list[Check]) -> list[str]:
    return [f"{check.name}: {check.error:.2e}" for check in checks if not check.ok]


@pytest.mark.parametrize("few_rows", [0, 256], ids=["fused", "by_layers"])
@pytest.mark.parametrize(("module", "path"), FILES, ids=[path.stem for _, path in FILES])
def test_replays_the_official_updates(
    module: object, path: Path, few_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "FEW_ROWS", few_rows)
    checks = module.Golden(path).replay()  # type: ignore[attr-defined]
    for part in ("wm/", "loss/", "/grad/", "variant/", "params1/", "params2/"):
        assert any(part in check.name for check in checks), f"nothing compared under {part}"
    assert not failures(checks)


@pytest.mark.parametrize(("module", "path"), [FILES[0], FILES[-2], FILES[-1]], ids=["v2", "v1", "planet"])
def test_the_check_notices_a_changed_weight(module: object, path: Path) -> None:
    golden = module.Golden(path)  # type: ignore[attr-defined]
    golden.agent.world.rssm.prior.linear.bias.data[0] += 0.1
    assert failures(golden.replay())
