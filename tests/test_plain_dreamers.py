"""DreamerV2 and Dreamer V1 equal the equations where no recording goes: unlike widths, squashed rewards, any order.

A file is written in the golden format by plain PyTorch, and replayed by the command that replays the official ones.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests import golden_dreamerv1, golden_dreamerv2
from tests.plain_dreamers import V1, V2, V2_SHAPES, PlainDreamerV1, PlainDreamerV2
from tests.replaying import main

CONTINUOUS = {"action_kind": "continuous", "actor_grad": "dynamics", "pred_discount": False, "kl.free": 0.3}
VECTORS = {"obs_keys": ["vel", "pos"], "clip_rewards": "identity"}
CASES = [
    (golden_dreamerv2, V2),
    (golden_dreamerv2, V2 | CONTINUOUS),
    (golden_dreamerv2, V2 | VECTORS),
    (golden_dreamerv1, V1),
    (golden_dreamerv1, V1 | {"clip_rewards": "none"}),
]


def written(path: Path, module: Any, config: dict[str, Any], **claimed: Any) -> Path:
    """A file of two updates; `claimed` are settings that it states and the updates do not have."""
    plain = PlainDreamerV2(config, V2_SHAPES) if module is golden_dreamerv2 else PlainDreamerV1(config)
    plain.run()
    plain.config = config | claimed
    plain.write(path)
    return path


@pytest.mark.parametrize(("module", "config"), CASES, ids=["images", "continuous", "vectors", "v1_tanh", "v1"])
def test_the_command_replays_what_the_equations_give(
    module: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["golden", str(written(tmp_path / "plain.npz", module, config))])
    assert main(lambda path: module.Golden(path).replay(), "file") == 0, capsys.readouterr().out
    assert "quantities, 0 beyond tolerance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "config", "claimed"),
    [
        (golden_dreamerv2, V2, {"obs_keys": ["image", "photo", "pos", "vel"]}),
        (golden_dreamerv2, V2, {"clip_rewards": "identity"}),
        (golden_dreamerv1, V1, {"clip_rewards": "none"}),
    ],
    ids=["order", "v2_rewards", "v1_rewards"],
)
def test_the_replay_notices_another_setting(module: Any, config: Any, claimed: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "plain.npz", module, config, **claimed)
    assert any(not check.ok for check in module.Golden(path).replay())
