"""The linear layer over many rows: who serves it, and torch.func. See test_contract.py for the rest."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastwm.ops.linear import _ROWS, linear
from tests.backends import needs_cpu
from tests.cases import CASES
from tests.cases.run import raw_calls, run

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_cpu]


@pytest.mark.parametrize("name", ["linear", "linear-blocks"])
def test_many_rows_are_the_kernels(name: str) -> None:
    for rows, calls in ((_ROWS, 2), (_ROWS - 1, 0)):
        assert len(raw_calls(CASES[name], CASES[name].args(dict(rows=rows)))) == calls


@pytest.mark.parametrize("name", ["linear", "linear-blocks"])
def test_the_reference_is_torchs(name: str) -> None:
    x, weight, bias = CASES[name].args()
    plain = x @ weight.T if weight.dim() == 2 else torch.einsum("nk,gkj->ngj", x, weight).flatten(-2)
    assert_close(linear(x, weight, bias), plain + bias)


def test_each_gradient_alone_is_the_same_bits() -> None:
    case = CASES["linear"]
    args = case.args()
    whole = run(case, args)
    for i in range(3):
        alone = run(case, tuple(x if j == i else x.detach() for j, x in enumerate(args)))
        assert torch.equal(alone[f"gradient of [{i}]"], whole[f"gradient of [{i}]"])


def test_functional_transforms_are_torchs() -> None:
    x, weight, bias = CASES["linear"].args()
    stack = torch.stack([x, 2 * x]).detach()
    assert_close(torch.vmap(lambda z: linear(z, weight, bias))(stack), F.linear(stack, weight, bias))
