"""MDNHead: column layouts, parameter counts, and the recorded outputs of the public codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm.nn import MDNHead


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "mdn_rnn.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind == "f"}


def test_sizes_of_the_published_networks() -> None:
    assert MDNHead(256, 32).linear.weight.shape == (480, 256)
    assert MDNHead(512, 64, extra=1).linear.weight.shape == (961, 512)
    assert MDNHead(256, 32, extra=2, joint=True).linear.weight.shape == (327, 256)


def test_a_column_is_one_parameter() -> None:
    """Column layout: column extra + 15 i + 5 + k changes mean[i, k] alone."""
    head = MDNHead(1, 4, extra=1)
    for i, k in [(0, 0), (2, 3), (3, 4)]:
        torch.nn.init.zeros_(head.linear.weight)
        torch.nn.init.zeros_(head.linear.bias)
        with torch.no_grad():
            head.linear.weight[1 + 15 * i + 5 + k] = 1
        mixture, extra = head(torch.ones(2, 1))
        expected = torch.zeros(2, 4, 5)
        expected[:, i, k] = 1
        assert_close(mixture.mean, expected)
        assert not mixture.logits.any() and not mixture.log_std.any() and not extra.any()


def load(head: MDNHead, weight: Tensor, bias: Tensor) -> MDNHead:
    head.linear.load_state_dict({"weight": weight, "bias": bias})
    return head


def test_recorded_outputs_of_the_original(golden: dict[str, Tensor]) -> None:
    head = load(MDNHead(10, 6), golden["car/params0/out_w"].T, golden["car/params0/out_b"])
    mixture, extra = head(golden["car/step0/hidden"])
    assert extra.shape == (3, 6, 0)
    assert_close(mixture.logits.log_softmax(-1), golden["car/step0/logmix"], atol=1e-6, rtol=1e-5)
    assert_close(mixture.mean, golden["car/step0/mean"], atol=1e-6, rtol=1e-5)
    assert_close(mixture.log_std, golden["car/step0/logstd"], atol=1e-6, rtol=1e-5)
    assert_close(mixture.nll(golden["car/z"][:, 1:]).mean(), golden["car/step0/cost"])


def test_recorded_restart_decisions(golden: dict[str, Tensor]) -> None:
    head = load(MDNHead(10, 6, extra=1), golden["doom/params0/out_w"].T, golden["doom/params0/out_b"])
    with np.load(Path(__file__).parent / "golden" / "mdn_rnn.npz") as file:
        done = torch.from_numpy(file["doom/sample/tau1.0/done"])
    assert torch.equal(head(golden["doom/sample/tau1.0/h"].float())[1][:, 0] > 0, done)


def test_recorded_joint_outputs(golden: dict[str, Tensor]) -> None:
    """One step: the cell's new state in, its recorded mixture, reward and done logit out."""
    names = ("joint/params0/gmm_linear.weight", "joint/params0/gmm_linear.bias")
    head = load(MDNHead(10, 6, extra=2, joint=True), *(golden[name] for name in names))
    mixture, extra = head(golden["joint/cell/h1"])
    assert_close(mixture.mean.mT, golden["joint/cell/mu"], atol=1e-6, rtol=1e-5)
    assert_close(mixture.log_std.exp().mT, golden["joint/cell/sigma"], atol=1e-6, rtol=1e-5)
    assert_close(mixture.logits.log_softmax(-1), golden["joint/cell/logpi"], atol=1e-6, rtol=1e-5)
    assert_close(extra, torch.stack([golden["joint/cell/reward_pred"], golden["joint/cell/done_logit"]], -1))


@pytest.mark.parametrize("joint", [False, True])
def test_trains_and_samples(joint: bool) -> None:
    """Two clusters on a diagonal: only the joint mixture can tell that their dimensions go together."""
    torch.manual_seed(0)
    target = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(64, 1) + 0.1 * torch.randn(128, 2)
    head = MDNHead(1, 2, components=3, joint=joint)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = head(torch.ones(128, 1))[0].nll(target).mean()
        loss.backward()
        optimizer.step()
    sample = head(torch.ones(2000, 1))[0].sample()
    assert_close(sample.abs().mean(), torch.tensor(1.0), atol=0.1, rtol=0)
    opposite = (sample.prod(-1) < 0).float().mean()
    assert opposite > 0.95 if joint else 0.4 < opposite < 0.6


def test_wrong_sizes_are_refused() -> None:
    for sizes in [(4, 0), (4, 2, 0), (4, 2, 5, -1)]:
        with pytest.raises(ValueError, match="MDNHead"):
            MDNHead(*sizes)
