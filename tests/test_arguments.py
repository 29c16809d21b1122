"""No argument crashes the process or is misread: what cannot be served is refused, in `ops` by a clear ValueError."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib, nn, ops
from tests.fuzz.__main__ import Recorder
from tests.fuzz.cases import Case, Draw, gru_rssm, laprop, mlp, rssm

pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_native = pytest.mark.skipif(not _lib.has_cpu, reason="not built")


def find(make: Callable[[Draw], Case], function: Callable[..., Any]) -> tuple[Any, ...]:
    """The arguments of a random call of this function, with at least one row."""
    for seed in range(1000):
        called, args = make(Draw(random.Random(seed), torch.float64))
        if called is function and all(x.numel() for x in args if isinstance(x, Tensor)):
            return args
    raise AssertionError(f"no call of {function}")


def raw(make: Callable[[Draw], Case], function: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """The raw operator that a call of this function makes, with its arguments."""
    with Recorder() as recorder, torch.no_grad():
        function(*find(make, function))
    op, args = recorder.calls[-1]
    return op, list(args)


def named(op: Any, args: list[Any], **changed: Any) -> list[Any]:
    names = [argument.name for argument in op._schema.arguments]
    return [changed.get(name, x) for name, x in zip(names, args, strict=True)]


@needs_native
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


@needs_native
def test_given_actions_and_no_step() -> None:
    op, args = raw(rssm, ops.rssm_open_loop)
    deter, stoch, uniform, *_ = args
    given = args[[argument.name for argument in op._schema.arguments].index("action")]
    deters, stochs, logits, *_ = op(*named(op, args, uniform=uniform[:0], action=given[:0]))
    assert_close(deters, deter[None])
    assert_close(stochs, stoch[None])
    assert logits.shape == (0, *stoch.shape)


@needs_native
@pytest.mark.parametrize(
    "changed",
    [
        {"layers": [2**62, 0]}, {"layers": [2**31, 0, 2**31, 0]}, {"layers": [-1, 0]}, {"layers": [1]},
        {"heads": [0, 2**62, 4]}, {"heads": [0, 2**32, 2**32]}, {"heads": [1, 2**63 - 1, 0]}, {"heads": [7, 1, 0]},
        {"cell": 9}, {"activation": 9}, {"activation": -1}, {"actor": torch.zeros(0)},
    ],
)  # fmt: skip
def test_sizes_that_overflow_are_refused(changed: dict[str, Any]) -> None:
    op, args = raw(gru_rssm, ops.gru_rssm_imagine)
    with pytest.raises(RuntimeError, match="fastwm: "):
        op(*named(op, args, **changed))


@needs_native
@pytest.mark.parametrize("heads", [[[2**62, 0]] * 4, [[2**32, 2**32]], [[-1, 0]], [[1, -1]]])
def test_heads_that_overflow_are_refused(heads: list[list[int]]) -> None:
    op, args = raw(rssm, ops.rssm_imagine)
    with pytest.raises(RuntimeError, match="fastwm: "):
        op(*named(op, args, heads=torch.tensor(heads)))


@needs_native
@pytest.mark.parametrize("shape", [(0, 2**40, 2**20), (2**62, 0), (0, 2**60)])
def test_empty_tensors_of_huge_sizes(shape: tuple[int, ...]) -> None:
    x = torch.empty(*shape, 3)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.block_gru_gates(x, torch.empty(*shape, 1), 1, -1.0)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.symlog(x)
    with pytest.raises(RuntimeError, match="sizes beyond 2\\^48 elements"):
        torch.ops.fastwm.mdn_nll(x, x, x, x[..., 0])


@needs_native
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


@needs_native
@pytest.mark.parametrize("activation", [-1, 4, 2**62])
def test_unknown_activations_of_raw_operators(activation: int) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="no such activation"):
        torch.ops.fastwm.norm_act(x, torch.ones(3), None, 1e-4, activation)


@pytest.mark.parametrize("backend", ["ref", *(["cpu"] if _lib.has_cpu else [])])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "xh"}, "kind.activation is one of relu, elu, silu, not 'xh'"),
        ({"order": "relu"}, "kind.order is one of xh, hx, not 'relu'"),
        ({"cell": "lstm"}, "kind.cell is one of gru, planet_gru, layernorm_gru, not 'lstm'"),
        ({"unimix": 1.5}, "0 <= unimix < 1"),
    ],
)
def test_unknown_kinds(backend: str, change: dict[str, Any], message: str) -> None:
    for function in (ops.gru_rssm_observe, ops.gru_rssm_open_loop, ops.gru_rssm_imagine):
        args = [x._replace(**change) if isinstance(x, ops.GRURSSMKind) else x for x in find(gru_rssm, function)]
        with fastwm.backend(backend), pytest.raises(ValueError, match=message):
            function(*args)


@pytest.mark.parametrize("backend", ["ref", *(["cpu"] if _lib.has_cpu else [])])
@pytest.mark.parametrize(
    ("make", "function"),
    [
        (rssm, ops.rssm_observe), (rssm, ops.rssm_imagine), (rssm, ops.rssm_open_loop),
        (gru_rssm, ops.gru_rssm_observe), (gru_rssm, ops.gru_rssm_open_loop), (gru_rssm, ops.gru_rssm_imagine),
        (mlp, ops.mlp),
    ],
)  # fmt: skip
def test_complex_and_half_tensors(backend: str, make: Callable[[Draw], Case], function: Callable[..., Any]) -> None:
    args = find(make, function)
    first = next(i for i, x in enumerate(args) if isinstance(x, Tensor))
    for dtype in (torch.complex64, torch.complex128):
        with fastwm.backend(backend), pytest.raises(ValueError, match="floating-point|one dtype"):
            function(*args[:first], args[first].to(dtype), *args[first + 1 :])
    state = 0 if function is not ops.rssm_observe and function is not ops.gru_rssm_observe else 3
    with fastwm.backend(backend), pytest.raises(ValueError, match="one dtype.*keep the module in float32 and use"):
        function(*args[:state], args[state].bfloat16(), *args[state + 1 :])


@pytest.mark.parametrize("batch", [(0,), (3,), (2, 0), ()])
def test_mlp_of_no_inputs(batch: tuple[int, ...]) -> None:
    """Zero columns and any number of rows."""
    w = Draw(random.Random(0), torch.float64).mlp(0, 2)
    x = torch.zeros(*batch, 0, dtype=torch.float64)
    got = ops.mlp(x, w)
    with fastwm.backend("ref"):
        assert_close(got, ops.mlp(x, w))


@needs_native
def test_random_calls() -> None:
    """A few; `make sanitize` makes many, with a library that finds every access out of bounds."""
    command = [sys.executable, "-m", "tests.fuzz", "--calls", "300", "--seed", "5"]
    done = subprocess.run(command, env=os.environ | {"FASTWM_BACKEND": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_laprop_takes_empty_lists() -> None:
    step, _ = laprop(Draw(random.Random(0), torch.float64))
    assert step([], [], [], []) == [[], [], []]
