"""World Models' V and M equal the public code: every recorded value, gradient, update and dream."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import golden_conv_vae, golden_mdn_rnn

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    pytest.param(golden_mdn_rnn.Golden, "mdn_rnn.npz", ("car/params2", "doom/params2", "joint/with_reward/params1",
                 "doom/as_released/grad", "sample/tau1.25/done"), id="mdn_rnn"),
    pytest.param(golden_mdn_rnn.Golden, "mdn_rnn_car_pretrained.npz", ("forced/logmix", "dream/z", "check/sum_c_3"),
                 id="car_pretrained"),
    pytest.param(golden_conv_vae.Golden, "conv_vae.npz", ("small/params1", "full/recon", "full/dec_fc/kernel/grad_l2"),
                 id="conv_vae"),
]  # fmt: skip


@pytest.mark.parametrize(("golden", "name", "parts"), CASES)
def test_replays_the_recording(golden: Any, name: str, parts: tuple[str, ...]) -> None:
    """Trap 41 is `check/` of the published CarRacing weights; traps 2.2-2.6 are the small networks."""
    checks = golden(GOLDEN / name).replay()
    for part in parts:
        assert any(part in check.name for check in checks), f"nothing compared under {part}"
    failed = [f"{check.name}: {check.error:.2e}" for check in checks if not check.ok]
    assert not failed, failed


def test_the_check_notices_a_changed_weight() -> None:
    golden = golden_mdn_rnn.Golden(GOLDEN / "mdn_rnn.npz")
    golden.data["car/params0/lstm_bias"] = golden.data["car/params0/lstm_bias"] + torch.eye(40)[25].numpy() * 0.01
    assert any(not check.ok for check in golden.replay())
