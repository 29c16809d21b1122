"""The lambda-return: values by hand, and what `lam` may be. See test_contract.py for the rest."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.ops import _backend, lambda_return
from tests.backends import Target
from tests.cases import CASES
from tests.cases.case import convert
from tests.cases.run import assert_near, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def column(*values: float, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


# Values by hand


def test_dreamer_v3_imagined_return(on: Target) -> None:
    reward, cont = column(1, 2, 3, 4, device=on.device), column(0.9, 0.9, 0.5, 0.9, device=on.device)
    ret = lambda_return(reward, cont, column(1, 1.5, 2, 2.5, device=on.device), 0.95)
    assert_close(ret, column(7.21256922, 7.21353125, 6.01875, 6.25, device=on.device), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("cont", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.5], [14.14191684, 5.96130625, 5.72375, 4.25]),
        ([0.99] * 4, [16.47118994, 7.89121737, 7.2482375, 5.475]),
    ],
    ids=["v2", "v1"],
)
def test_dreamer_v2_and_v1_targets(on: Target, cont: list[float], expected: list[float]) -> None:
    reward, next_value = column(9, 1, 2, 3, device=on.device), column(1, 1.5, 2, 2.5, device=on.device)
    ret = lambda_return(reward, column(*cont, device=on.device), next_value, 0.95)
    assert_close(ret, column(*expected, device=on.device), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        (1.0, [3.19339339, 2.0, 11.73896600, 11.97297297]),
        (0.0, [9.80351342, 8.97897898, 11.73896600, 11.97297297]),
    ],
    ids=["terminal", "truncated"],
)
def test_dreamer_v3_replay_return(on: Target, terminal: float, expected: list[float]) -> None:
    last, term = column(0, 0, 1, 0, 0, device=on.device), column(0, 0, terminal, 0, 0, device=on.device)
    reward, boot = column(0, 1, 2, 0, 3, device=on.device), column(5, 6, 7, 8, 9, device=on.device)
    cont, lam = (1 - term[1:]) * (1 - 1 / 333), (1 - last[1:]) * 0.95
    assert_close(lambda_return(reward[1:], cont, boot[1:], lam), column(*expected, device=on.device), atol=1e-8, rtol=0)


# Contracts


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (2, 3), (4, 2, 3)], ids=str)
def test_lam_broadcasts(on: Target, shape: tuple[int, ...]) -> None:
    case = CASES["lambda_return-varying"]
    reward, cont, next_value, lam = convert(case.args(dict(T=4, lead=(2, 3))), device=on.device)
    part = lam[tuple(slice(0, size) for size in (1,) * (3 - len(shape)) + shape)].reshape(shape)
    want = run(case, (reward, cont, next_value, part.expand(4, 2, 3)))
    assert_near(case, run(case, (reward, cont, next_value, part)), want, 1e-12)


def test_backend_can_change_around_and_inside_a_compiled_function() -> None:
    torch._dynamo.reset()
    *args, _ = CASES["lambda_return"].args()

    def inside(r: Tensor, c: Tensor, v: Tensor) -> Tensor:
        with fastwm.backend("ref"):
            return lambda_return(r, c, v)

    want = lambda_return(*args)
    graphs: list[bool] = []  # whether each that was compiled calls an operator of ours

    def watch(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append("fastwm" in graph.code)
        return graph.forward

    ours = _backend.select(args[0]) is not None
    assert_close(torch.compile(inside, fullgraph=True, backend=watch)(*args), want)
    compiled = torch.compile(lambda_return, fullgraph=True, backend=watch)
    for _ in range(2):
        assert_close(compiled(*args), want)
        with fastwm.backend("ref"):
            assert_close(compiled(*args), want)
    assert graphs == [False, ours, False] if ours else not any(graphs)
