"""symlog and symexp: golden numbers, and their ends. See test_contract.py for the rest."""

import pytest
import torch
from torch.testing import assert_close

import fastwm
from fastwm import ops
from tests.backends import Target

pytestmark = pytest.mark.usefixtures("poisoned_memory")
functions = pytest.mark.parametrize("name", ["symlog", "symexp"])
inf, nan = float("inf"), float("nan")


def test_golden_values(on: Target) -> None:
    x = torch.tensor([100.0, -100.0, 0.0, 2.0, -2.0], dtype=torch.float64, device=on.device)
    assert_close(ops.symlog(x)[:3].tolist(), [4.615120516841259, -4.615120516841259, 0.0])
    assert_close(ops.symexp(x)[3:].tolist(), [6.38905609893065, -6.38905609893065])
    assert_close(ops.symexp(ops.symlog(x)), x, rtol=1e-12, atol=0)


def test_infinities_nan_and_the_smallest_numbers(on: Target) -> None:
    x = torch.tensor([inf, -inf, nan, 1e-30, -1e-8], device=on.device)
    assert_close(ops.symlog(x), x, equal_nan=True)
    assert_close(ops.symexp(x), x, equal_nan=True)


@functions
def test_derivative_at_zero_is_one(on: Target, name: str) -> None:
    x = torch.zeros(3, device=on.device, requires_grad=True)
    getattr(ops, name)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]


@functions
def test_reference_is_differentiable_twice(name: str) -> None:
    """But at 0, where the second derivative jumps."""
    x = torch.tensor([-3.0, 0.5], dtype=torch.float64, requires_grad=True)
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(getattr(ops, name), x)
