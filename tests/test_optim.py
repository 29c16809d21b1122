"""LaProp and AGC: values by hand, and traps (docs/traps.md)."""

from copy import deepcopy

import pytest
import torch

from fastwm.optim import LaProp


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


def test_laprop_is_not_adam() -> None:
    """LaProp: normalise first, momentum second. Adam would give 0.9, 0.8035, 0.7615."""
    p = parameter(1.0)
    optimizer = LaProp([p], lr=0.1, agc=0.0, warmup=0)
    for grad, expected in zip((1.0, 2.0, -1.0), (0.9, 0.78606730, 0.74026869)):
        p.grad = torch.tensor([grad])
        optimizer.step()
        assert p.item() == pytest.approx(expected, rel=1e-6)


def test_warmup_starts_at_zero() -> None:
    p = parameter(1.0)
    optimizer = LaProp([p], lr=4e-5, agc=0.0, warmup=1000)
    p.grad = torch.tensor([1.0])
    optimizer.step()
    assert p.item() == 1.0
    p.data = torch.zeros(1)
    p.grad = torch.tensor([2.0])
    optimizer.step()
    assert -p.item() == pytest.approx(4e-8 * 1.13932699, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "grad", "expected"),
    [((3.0, 4.0), (0.0, 3.0), (0.0, 1.5)), ((0.0, 0.0), (0.0, 3.0), (0.0, 3e-4)), ((3.0, 4.0), (0.1, 0.0), (0.1, 0.0))],
)
def test_agc(values: tuple[float, ...], grad: tuple[float, ...], expected: tuple[float, ...]) -> None:
    p = parameter(*values)
    optimizer = LaProp([p], lr=0.0, agc=0.3, warmup=0)
    p.grad = torch.tensor(grad)
    optimizer.step()
    # nu = 0.001 g^2 after one step shows the clipped gradient.
    torch.testing.assert_close((optimizer.state[p]["nu"] / 0.001).sqrt(), torch.tensor(expected))


def test_agc_is_per_tensor() -> None:
    """Clipping by tensor: two tensors are clipped by their own norms, not by one over both."""
    a, b = parameter(3.0, 4.0), parameter(0.0, 0.0)
    optimizer = LaProp([a, b], lr=0.0, warmup=0)
    a.grad, b.grad = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    optimizer.step()
    clipped = [(optimizer.state[p]["nu"] / 0.001).sqrt()[1].item() for p in (a, b)]
    assert clipped == pytest.approx([1.0, 3e-4], rel=1e-4)


def test_zero_gradients_move_nothing_and_state_resumes() -> None:
    p = parameter(1.0, 2.0)
    optimizer = LaProp([p], lr=0.1, warmup=0)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [1.0, 2.0]
    p.grad = torch.tensor([0.3, -0.2])
    optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    twin = LaProp([q], lr=0.1, warmup=0)
    twin.load_state_dict(deepcopy(optimizer.state_dict()))
    for x, o in ((p, optimizer), (q, twin)):
        x.grad = torch.tensor([0.1, 0.4])
        o.step()
    assert torch.equal(p, q)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="betas"):
        LaProp([parameter(1.0)], betas=(0.9, 1.0))
