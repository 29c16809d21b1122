"""No argument crashes the process or is misread: what cannot be served is refused, in `ops` by a clear ValueError."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import fastwm
from fastwm import nn, ops
from tests.backends import Target, needs_cpu
from tests.cases import CASES, Draw
from tests.cases.run import raw_call

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def raw(name: str) -> tuple[Any, dict[str, Any]]:
    return raw_call(CASES[name], CASES[name].args())


@needs_cpu
@pytest.mark.parametrize("kind", ["planet", "dreamer_v1", "dreamer_v2"])
def test_actions_of_width_0(kind: str) -> None:
    torch.manual_seed(0)
    rssm = nn.RSSM(kind, tokens=5, action=0, deter=8, hidden=7, stoch=3).double()
    state = rssm.initial(3)
    action = torch.zeros(4, 3, 0, dtype=torch.float64)
    noise = torch.rand(4, *state[1].shape[:2], dtype=torch.float64)
    got = rssm.open_loop(state, action, noise)
    with fastwm.backend("ref"):
        assert_close(got, rssm.open_loop(state, action, noise))


@needs_cpu
def test_given_actions_and_no_step() -> None:
    op, args = raw("rssm_open_loop")
    deter, stoch = args["deter0"], args["stoch0"]
    args |= {"uniform": args["uniform"][:0], "action": args["action"][:0]}
    deters, stochs, logits, *_ = op(*args.values())
    assert_close(deters, deter[None])
    assert_close(stochs, stoch[None])
    assert logits.shape == (0, *stoch.shape)


@needs_cpu
@pytest.mark.parametrize(
    "changed",
    [
        {"heads_size": [2**62, 2, 1]}, {"heads_size": [-1, 2, 1]}, {"heads_size": [1]},
        {"heads_classes": [2**62, 0, 0]}, {"heads_classes": [4, 1, 0]}, {"heads_dist": [7, 3, 2]}, {"w_cell": 9},
        {"w_activation": 9}, {"w_activation": -1}, {"actor_w": torch.zeros(0, 0)}, {"actor_w_out": torch.zeros(3, 7)},
    ],
)  # fmt: skip
def test_raw_actors_that_do_not_fit_are_refused(changed: dict[str, Any]) -> None:
    op, args = raw("gru_rssm_imagine-v2")
    changed = {name: x.to(args["actor_w"].dtype) if isinstance(x, torch.Tensor) else x for name, x in changed.items()}
    with pytest.raises(RuntimeError, match="fastwm: "):
        op(*(args | changed).values())


@needs_cpu
@pytest.mark.parametrize("heads", [[[2**62, 0]] * 4, [[2**32, 2**32]], [[-1, 0]], [[1, -1]]])
def test_heads_that_overflow_are_refused(heads: list[list[int]]) -> None:
    op, args = raw("rssm_imagine")
    lists: dict[str, Any] = dict(zip(("heads_size", "heads_classes"), map(list, zip(*heads))))
    lists["heads_dist"] = [int(size == 0) for size in lists["heads_classes"]]
    lists |= dict.fromkeys(("heads_min_std", "heads_shift"), [0.0] * len(heads))
    with pytest.raises(RuntimeError, match="fastwm: rssm_imagine: heads that do not fit"):
        op(*(args | lists).values())


@needs_cpu
@pytest.mark.parametrize("shape", [(0, 2**40, 2**20), (2**62, 0), (0, 2**60)])
def test_empty_tensors_of_huge_sizes(shape: tuple[int, ...]) -> None:
    x = torch.empty(*shape, 3)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.block_gru_gates(x, torch.empty(*shape, 1), 1, -1.0)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.symlog(x)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.mdn_nll(x, x, x, x[..., 0])


@needs_cpu
@pytest.mark.parametrize("name", ["step_at", "lr_at", "apply_at"])
def test_laprop_reads_one_number(name: str) -> None:
    p = torch.ones(3)
    dtypes = {"step_at": torch.int64, "lr_at": torch.float32, "apply_at": torch.bool}
    numbers = dict.fromkeys(dtypes) | {name: torch.empty(0, dtype=dtypes[name])}
    with pytest.raises(RuntimeError, match="must hold one number"):
        torch.ops.fastwm.laprop_step_(
            [p], [p], [p.clone()], [p.clone()], 0, numbers["step_at"], 0.1, numbers["lr_at"], numbers["apply_at"],
            0.9, 0.999, 1e-20, 0.3, 1e-3, 10,
        )  # fmt: skip


@needs_cpu
@pytest.mark.parametrize("activation", [-1, 4, 2**62])
def test_unknown_activations_of_raw_operators(activation: int) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="no such activation"):
        torch.ops.fastwm.norm_act(x, torch.ones(3), None, 1e-4, activation)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("rssm_observe", 3), ("rssm_imagine", 0), ("rssm_open_loop", 0), ("gru_rssm_observe-v2", 3),
        ("gru_rssm_imagine-v2", 0), ("gru_rssm_open_loop-v2", 0), ("mlp", 0),
    ],
)  # fmt: skip
def test_complex_and_half_tensors(on: Target, name: str, state: int) -> None:
    """Of the first argument, and of the state."""
    sizes = dict(lead=(3,), latents=None) if name == "mlp" else None
    operator, args = CASES[name].operator, CASES[name].args(sizes)
    for dtype in (torch.complex64, torch.complex128):
        with pytest.raises(ValueError, match="floating-point|one dtype"):
            operator(args[0].to(dtype), *args[1:])
    with pytest.raises(ValueError, match="one dtype.*keep the module in float32 and use"):
        operator(*args[:state], args[state].bfloat16(), *args[state + 1 :])


@pytest.mark.parametrize("batch", [(0,), (3,), (2, 0), ()])
def test_mlp_of_no_inputs(batch: tuple[int, ...]) -> None:
    """Zero columns and any number of rows."""
    w = Draw().mlp(0, 2)
    x = torch.zeros(*batch, 0, dtype=torch.float64)
    got = ops.mlp(x, w)
    with fastwm.backend("ref"):
        assert_close(got, ops.mlp(x, w))


@needs_cpu
def test_random_calls() -> None:
    """A few; `make sanitize` makes many, with a library that finds every access out of bounds."""
    command = [sys.executable, "-m", "tests.fuzz", "--calls", "300", "--seed", "5"]
    done = subprocess.run(command, env=os.environ | {"FASTWM_BACKEND": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_laprop_takes_empty_lists() -> None:
    assert CASES["laprop_step_"].operator([], [], [], [], 3) == ([], [], [])
