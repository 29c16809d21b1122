"""The block GRU over a sequence: the cell's steps, resets, bfloat16. See test_contract.py for the rest."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm.nn import BlockGRU, BlockGRUCell
from fastwm.ops import block_gru_scan
from tests.backends import Target, needs_cpu, needs_kernel, threads
from tests.cases import CASES
from tests.cases.run import assert_equal, assert_near, run
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("block_gru_scan")]

TINY: dict[str, Any] = dict(input_size=(7, 3), hidden_size=8, embed_size=6, blocks=2)
Args = tuple[list[Tensor], Tensor, Tensor]  # inputs, hx, is_first


def make(
    T: int, B: int, sizes: dict[str, Any] = TINY, dtype: torch.dtype = torch.float64, resets: float = 0.2, seed: int = 0
) -> tuple[BlockGRU, Args]:
    """A module with every parameter moved off its initial value, and its arguments."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    gru = BlockGRU(**sizes).to(dtype)
    with torch.no_grad():
        for p in gru.parameters():
            fan_in = p.shape[-1] if p.ndim == 2 else p.shape[-2] if p.ndim == 3 else 25
            p.copy_((p.ndim == 1) * p + draw(*p.shape) / fan_in**0.5)
    inputs = [draw(T, B, layer.linear.weight.shape[1]).requires_grad_() for layer in gru.embed_inputs]
    is_first = torch.rand(T, B, generator=generator) < resets
    return gru, (inputs, draw(B, gru.hidden_size).requires_grad_(), is_first)


# Against the reference


# Meaning


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_cells_steps(on: Target, layers: int) -> None:
    """The same state dict, the same numbers as a loop over the cell; a deeper cell works too."""
    gru, (inputs, hx, is_first) = make(5, 3, TINY | dict(layers=layers, update_bias=0.5), torch.float32)
    cell = BlockGRUCell(**TINY, layers=layers, update_bias=0.5)
    cell.load_state_dict(gru.state_dict())
    output, last = gru(inputs, hx, is_first)
    h = hx
    for t in range(5):
        h = cell([x[t] for x in inputs], h, is_first[t])
        assert_close(output[t], h, atol=1e-5, rtol=0)
    assert torch.equal(output[-1], last)


def test_starts_from_zeros_without_resets(on: Target) -> None:
    gru, (inputs, hx, is_first) = make(3, 2)
    assert torch.equal(gru(inputs)[0], gru(inputs, torch.zeros_like(hx), torch.zeros_like(is_first))[0])
    one = BlockGRU(7, 8, embed_size=6, blocks=2).double()
    assert torch.equal(one(inputs[0])[0], one(inputs[:1])[0])


def test_a_reset_forgets_the_past_and_stops_its_gradient(on: Target) -> None:
    gru, (inputs, hx, is_first) = make(4, 2, resets=0.0)
    is_first[2, 0] = True
    output = gru(inputs, hx, is_first)[0]
    fresh = gru([x[2:] for x in inputs])[0]
    assert_close(output[2:, 0], fresh[:, 0], atol=1e-12, rtol=0)
    assert not torch.allclose(output[2:, 1], fresh[:, 1])
    d_input, d_hx = torch.autograd.grad(output[2:].sum(), [inputs[0], hx])
    assert not d_input[:2, 0].any() and not d_hx[0].any()
    assert d_input[:2, 1].abs().min() > 0 and d_hx[1].abs().min() > 0


# Contracts


# bfloat16


@needs_cpu
def test_bfloat16_inputs_and_autocast() -> None:
    """A bfloat16 input, as a layer under autocast leaves it, beside a float32 carry."""
    gru, (inputs, hx, is_first) = make(3, 2, dtype=torch.float32)
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs]
    want = gru([x.float() for x in rounded], hx, is_first)[0]
    assert_close(gru(rounded, hx, is_first)[0], want)
    with torch.autocast("cpu", torch.bfloat16):
        got = gru(rounded, hx, is_first)[0]
        assert got.dtype == torch.float32
        (grad,) = torch.autograd.grad(got.sum(), rounded[0])
        assert grad.dtype == torch.bfloat16
    assert_close(got, want, atol=0.05, rtol=0)


@needs_cpu
def test_bfloat16_does_not_depend_on_threads_beyond_rounding() -> None:
    case = CASES["block_gru_scan"]
    args = case.args(dict(T=9, B=40, inputs=(16,), block=64, hidden=128, blocks=8), torch.float32)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for count in (1, 2, 3):
            with threads(count):
                results.append(run(case, args))
                assert_equal(run(case, args), results[-1])
    for other in results[1:]:
        assert_near(case, other, results[0], 1e-2)


def test_the_operators_own_arguments() -> None:
    """`block_gru_scan` without the module; one tensor is one input."""
    gru, (inputs, hx, is_first) = make(3, 2, dict(input_size=7, hidden_size=8, embed_size=6, blocks=2))
    assert_close(block_gru_scan(inputs[0], hx, gru.params, is_first), gru(inputs, hx, is_first), atol=0, rtol=0)


@needs_cpu
def test_peak_memory_is_not_above_the_loops() -> None:
    peak = peak_memory("""
from fastwm.nn import BlockGRU
gru = BlockGRU(128, 1024, embed_size=128)
def sequence(T, B):
    return gru(torch.randn(T, B, 128), torch.randn(B, 1024))[:1]
""")
    assert peak["cpu"] <= peak["ref"], peak
