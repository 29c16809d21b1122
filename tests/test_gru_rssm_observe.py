"""The observe sequence of PlaNet, V1 and V2: resets, reparameterisation. See test_contract.py for the rest."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
from fastwm.ops import gru_rssm_observe
from tests.backends import Target, needs_cpu, needs_kernel
from tests.cases import CASES, Case
from tests.cases.run import assert_near, raw_call, reference, run
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("gru_rssm_observe")]

one_of_each = pytest.mark.parametrize("name", ["planet", "v1", "v2"])


def case_of(name: str) -> Case:
    return CASES[f"gru_rssm_observe-{name}"]


@needs_cpu
def test_a_norm_without_shift() -> None:
    case = case_of("v2")
    *inputs, w, kind = case.args(dict(T=5, B=3, norm=True))
    args = *inputs, w._replace(post=w.post._replace(shift=None)), kind
    assert_near(case, run(case, args), reference(case, args), case.tolerance)


@one_of_each
def test_a_reset_forgets_start_and_action(on: Target, name: str) -> None:
    tokens, action, is_first, deter, stoch, *rest = case_of(name).args(dict(T=3, B=2, resets=0.0))
    is_first[1, 0] = True
    other = action.detach().clone()
    other[:2] += 1
    ours = gru_rssm_observe(tokens, action, is_first, deter, stoch, *rest)
    moved = gru_rssm_observe(tokens, other, is_first, deter + 1, stoch + 1, *rest)
    for a, b in zip(ours, moved):
        assert torch.equal(a[1:, 0], b[1:, 0])
    assert not torch.equal(ours[0][1:, 1], moved[0][1:, 1])


def test_a_gaussian_is_reparameterised(on: Target) -> None:
    args = case_of("v1").args(dict(T=3, B=4))
    _, stoch, stats = gru_rssm_observe(*args)
    mean, raw = stats.chunk(2, -1)
    assert_close(stoch, mean + (torch.nn.functional.softplus(raw) + 0.1) * args[5])


def test_the_start_state_is_data(on: Target) -> None:
    args = case_of("v2").args()
    deter = args[3].requires_grad_()
    assert torch.autograd.grad(gru_rssm_observe(*args)[0].sum(), deter, allow_unused=True) == (None,)


@needs_cpu
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_the_raw_operators_start_state_has_a_gradient(name: str) -> None:
    """Open loop is the same chain, and needs it."""
    case = case_of(name)
    # The sample's step is no derivative: of categoricals only the first step's is finite differences'.
    op, inputs = raw_call(case, case.args(dict(T=3 if name == "v1" else 1, B=2)))
    inputs |= {"save": True}
    start = [inputs[key].requires_grad_() for key in ("deter0", "stoch0")]

    def loss(deter: Tensor, stoch: Tensor) -> Tensor:
        outputs = op(*(inputs | {"deter0": deter, "stoch0": stoch}).values())
        return outputs[0].sum() + (outputs[2] ** 2).sum()

    assert torch.autograd.gradcheck(loss, start)


@needs_cpu
@pytest.mark.parametrize(("cell", "activation"), [(-1, 1), (3, 1), (-1, 9), (3, 9)])
def test_an_unknown_cell_of_the_raw_operator_is_refused(cell: int, activation: int) -> None:
    op, inputs = raw_call(case_of("v2"), case_of("v2").args())
    with pytest.raises(RuntimeError, match="no such w_(cell|activation)"):
        op(*(inputs | {"w_cell": cell, "w_activation": activation}).values())


@needs_cpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_systems_own_sizes(variant: str) -> None:
    rssm = GRURSSM(variant, 16, 2, 48, 40, 6)
    stats = rssm.observe(rssm.initial(2), torch.zeros(3, 2, 2), torch.randn(3, 2, 16), torch.zeros(3, 2).bool())[1]
    assert stats.requires_grad and stats.shape == ((3, 2, 6, 32) if rssm.kind.classes else (3, 2, 12))


@needs_cpu
def test_peak_memory_is_not_above_the_loops() -> None:
    peak = peak_memory("""
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
rssm = GRURSSM(VARIANTS["dreamer_v2"], 256, 6, 400, 400, 32)
def sequence(T, B):
    inputs = torch.randn(T, B, 256), torch.randn(T, B, 6), torch.zeros(T, B, dtype=torch.bool)
    return fastwm.ops.gru_rssm_observe(*inputs, *rssm.initial(B), rssm.noise(T, B), rssm.weights, rssm.kind)
""")
    assert peak["cpu"] <= peak["ref"], peak
