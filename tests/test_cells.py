"""The gates of recurrent cells: values by hand, and saturation. See test_contract.py for the rest."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm import ops
from tests.backends import Target
from tests.cases import CASES
from tests.cases.case import convert
from tests.cases.run import exact, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def vector(*values: float, device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


# Values by hand


def test_dreamer_gates_by_hand(on: Target) -> None:
    """Order reset, cand, update; the update gate writes; its bias is -1."""
    h = ops.block_gru_gates(vector(0.5, 1.0, 0.3, device=on.device), vector(0.2, device=on.device), 1)
    assert_close(h, vector(0.31707597, device=on.device), atol=1e-8, rtol=0)
    kept = ops.block_gru_gates(vector(0, 0, 0, device=on.device), vector(1, device=on.device), 1)
    assert_close(kept, vector(0.73105858, device=on.device), atol=1e-8, rtol=0)


def test_torch_gates_by_hand(on: Target) -> None:
    """Dreamer V1's cell; recurrent weight 1, recurrent bias of the candidate 0.4."""
    input, hidden = vector(0.5, 0.3, 1.0, device=on.device), vector(0.2, 0.2, 0.6, device=on.device)
    h = ops.gru_gates(input, hidden, vector(0.2, device=on.device))
    assert_close(h, vector(0.45882254, device=on.device), atol=1e-8, rtol=0)


def test_planet_gates_by_hand(on: Target) -> None:
    """Gate biases +1, reset before the product, whose weight is 1."""
    h = vector(0.2, device=on.device)
    reset_h, update = ops.planet_gru_reset(vector(0.5 + 0.2 + 1, 0.3 + 0.2 + 1, device=on.device), h)
    assert_close(torch.cat([reset_h / h, update]), vector(0.84553473, 0.81757448, device=on.device), atol=1e-8, rtol=0)
    after = ops.planet_gru_update(update, 1.0 + reset_h, h)
    assert_close(after, vector(0.31383090, device=on.device), atol=2e-8, rtol=0)


def test_world_models_lstm_by_hand(on: Target) -> None:
    """The forget gate's constant 1, the order i, j, f, o."""
    zero, c = vector(0, 0, 0, 0, device=on.device), vector(1, device=on.device)
    h, c = ops.lstm_gates(zero, zero, c, 1.0, "ijfo")
    assert_close(torch.cat([c, h]), vector(0.7310585786, 0.3118562749, device=on.device), atol=1e-9, rtol=0)
    h, c = ops.lstm_gates(zero, zero, vector(1, device=on.device))
    assert_close(torch.cat([c, h]), vector(0.5, 0.2310585786, device=on.device), atol=1e-9, rtol=0)
    products = zero + 0.1 * 1 + 0.1 * 0.5
    h, c = ops.lstm_gates(products, zero, vector(-0.25, device=on.device), 1.0, "ijfo")
    assert_close(torch.cat([c, h]), vector(-0.1098624686, -0.0588069643, device=on.device), atol=1e-9, rtol=0)


def test_lstm_orders_are_permutations(on: Target) -> None:
    input, hidden, c, *_ = convert(CASES["lstm_gates"].args(dict(lead=(3,), D=5)), device=on.device)

    def swapped(x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, 5))[:, [0, 2, 1, 3]].flatten(1)

    assert_close(
        ops.lstm_gates(input, hidden, c, 0.5, "ijfo"), ops.lstm_gates(swapped(input), swapped(hidden), c, 0.5, "ifgo")
    )


def test_blocks_are_split_one_by_one(on: Target) -> None:
    """With 2 blocks of width 2, reset, cand, update are [0,1,6,7], [2,3,8,9], [4,5,10,11]."""
    gates = torch.randn(5, 12, dtype=torch.float64, device=on.device)
    h = torch.randn(5, 4, dtype=torch.float64, device=on.device)
    regrouped = gates[:, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]]
    assert_close(ops.block_gru_gates(gates, h, 2), ops.block_gru_gates(regrouped, h, 1))
    gates[:, :6] += 1  # the first block's gates change the first block's carry alone
    changed = (ops.block_gru_gates(gates, h, 2) - ops.block_gru_gates(regrouped, h, 1)).abs() > 1e-12
    assert changed[:, :2].all()
    assert not changed[:, 2:].any()


def test_layernorm_is_over_all_gates(on: Target) -> None:
    """The norm spans the whole 3 * deter vector, with eps inside the root, before the gates."""
    gates = vector(3, 1, -1, device=on.device)
    weight, bias, h = (
        vector(1, 2, 1, device=on.device),
        vector(0, 0, 0.5, device=on.device),
        vector(0.2, device=on.device),
    )
    scale = (8 / 3 + 1e-3) ** -0.5
    want = ops.block_gru_gates(vector(2 * scale, 0, 0.5 - 2 * scale, device=on.device), h, 1)
    assert_close(ops.layernorm_gru_gates(gates, weight, bias, h), want, atol=1e-12, rtol=0)


# Against the reference


GATES = {"gru_gates": 2, "block_gru_gates": 1, "layernorm_gru_gates": 1, "planet_gru_reset": 1, "lstm_gates": 2}


@pytest.mark.parametrize("name", [*GATES, "planet_gru_update", "lstm_gates-ijfo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saturated_gates(native: Target, name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    args = list(convert(case.args(dict(lead=(4,), D=20, mixed=True), dtype), device=native.device))
    gates = [1] if name == "planet_gru_update" else range(GATES[name.removesuffix("-ijfo")])
    for i in gates:
        args[i] = (300 * args[i]).detach().requires_grad_()
    ours, want = run(case, tuple(args)), exact(case, tuple(args))
    for key, truth in want.items():
        assert_close(ours[key].double(), truth, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)


# Contracts


def test_norm_weights_are_cast_to_the_carry(native: Target) -> None:
    gates, weight, bias, h, *_ = convert(CASES["layernorm_gru_gates"].args(dtype=torch.bfloat16), device=native.device)
    h = h.float()
    want = ops.layernorm_gru_gates(gates, weight.float(), bias.float(), h)
    assert_close(ops.layernorm_gru_gates(gates, weight, bias, h), want)
