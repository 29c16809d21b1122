"""NaN in is NaN out, in every operator, on every backend: in what depends on it, and in no other row."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import fastwm
from fastwm import _lib, ops
from fastwm.nn import DREAMER_V2, BlockRSSM, Dense
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS
from fastwm.ops import ActionHead, BlockGRUWeights, DenseWeights, LinearWeights, MDNRNNWeights, MLPWeights, PolicyHead
from tests.conftest import INTERPRETED, Target

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]

B, ROW, T = 37, 1, 4  # rows, more than a tile of 32, and no other size of a case; the row that gets the NaN; steps
GENERATOR = torch.Generator()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=GENERATOR)


def first() -> Tensor:
    """The last step of the row that gets the NaN starts anew: nothing of it may be left there."""
    is_first = uniform(T, B) < 0.2
    is_first[:-1, ROW], is_first[-1, ROW] = False, True
    return is_first


class Case(NamedTuple):
    operator: Callable[..., Any]
    args: tuple[Any, ...]
    data: tuple[int, ...] = ()
    """Arguments that have no gradient."""
    differentiable: bool = True


def categorical(estimator: str, unimix: float) -> Case:
    noise = uniform(B, 7) if estimator == "gumbel" else uniform(B)
    return Case(ops.straight_through_categorical, (2 * normal(B, 7), noise, unimix, estimator), (1,))


def two_hot_loss() -> Case:
    bins, target = torch.linspace(-3, 3, 9), normal(B)
    return Case(lambda x, y: ops.two_hot_loss(x, target.to(x), bins.to(x), y, 0.5), (normal(B, 9), normal(B)), (1,))


def layers(*widths: int) -> tuple[DenseWeights, ...]:
    return tuple(DenseWeights(normal(o, i), normal(o), normal(o)) for i, o in pairwise(widths))


def mlp(activation: str, norm: bool) -> Case:
    norms = (normal(7), normal(7)) if norm else (None, None)
    hidden = tuple(ops.LayerWeights(normal(7, i), normal(7), *norms) for i in (6, 7))
    return Case(ops.mlp, (normal(B, 6), MLPWeights(hidden, LinearWeights(normal(3, 7), normal(3)), activation)))


def block_gru() -> Case:
    D, U, X, G = 8, 6, 3, 2
    weights = BlockGRUWeights(
        DenseWeights(normal(U, D), normal(U), normal(U)), (DenseWeights(normal(U, X), normal(U), normal(U)),),
        (DenseWeights(normal(G, D // G + 2 * U, D // G), normal(D), normal(D)),),
        LinearWeights(normal(G, D // G, 3 * D // G), normal(3 * D)),
    )  # fmt: skip
    return Case(ops.block_gru_scan, ((normal(T, B, X),), normal(B, D), weights, first()))


def block_rssm() -> BlockRSSM:
    rssm = BlockRSSM(tokens=7, action=3, deter=8, hidden=6, stoch=4, classes=5, blocks=2)
    for p in rssm.parameters():
        p.data.copy_((p.ndim == 1) * p.data + normal(*p.shape) / p.shape[-1] ** 0.5)
    return rssm


def start(deter: int = 8) -> tuple[Tensor, Tensor]:
    return normal(B, deter), normal(B, 4, 5)


def rssm_observe() -> Case:
    args = normal(T, B, 7), normal(T, B, 3), first(), *start(), uniform(T, B, 4), block_rssm().observe_weights()
    return Case(ops.rssm_observe, args, (3, 4, 5))


def rssm_imagine(policy_unimix: float) -> Case:
    rssm = block_rssm()
    actor = MLPWeights(layers(28, 6, 6), LinearWeights(normal(3, 6), normal(3)))
    args = *start(), uniform(T, B, 4), uniform(T + 1, B, 1), rssm.observe_weights(), rssm.prior_weights(), actor
    return Case(ops.rssm_imagine, (*args, (ActionHead(1, 3),), 0.01, policy_unimix), differentiable=False)


def open_loop() -> Case:
    rssm = block_rssm()
    args = *start(), uniform(T, B, 4), normal(T, B, 3), rssm.observe_weights(), rssm.prior_weights()
    return Case(ops.rssm_open_loop, args, differentiable=False)


def gru_rssm(variant: str, action: int = 3) -> tuple[GRURSSM, tuple[Tensor, Tensor], Tensor]:
    """A model, start states, and noise."""
    kind = VARIANTS[variant]
    kind = kind._replace(classes=5) if kind.classes else kind
    rssm = GRURSSM(kind, 7, action, deter=8, hidden=6, stoch=4)
    for p in rssm.parameters():
        p.data.copy_((p.ndim == 1) * p.data + normal(*p.shape) / p.shape[-1] ** 0.5)
    stoch = normal(B, 4, 5) if kind.classes else normal(B, 4)
    return rssm, (normal(B, 8), stoch), uniform(T, B, 4) if kind.classes else normal(T, B, 4)


def gru_observe(variant: str) -> Case:
    rssm, state, noise = gru_rssm(variant)
    args = normal(T, B, 7), normal(T, B, 3), first(), *state, noise, rssm.weights, rssm.kind
    return Case(ops.gru_rssm_observe, args, (3, 4, 5))


def gru_imagine(variant: str) -> Case:
    rssm, state, noise = gru_rssm(variant)
    return Case(ops.gru_rssm_open_loop, (*state, noise, normal(T, B, 3), rssm.weights, rssm.kind), (2,))


def gru_dream(variant: str) -> Case:
    heads = PolicyHead(1, 3, "onehot"), PolicyHead(2, 0, "trunc_normal", 0.2), PolicyHead(1, 0, "tanh_normal")
    rssm, state, noise = gru_rssm(variant, 6)
    actor = Dense(rssm.feat_dim, 7, style=DREAMER_V2).params
    out = LinearWeights(normal(9, 7), normal(9))
    args = *state, noise, uniform(T, B, 4), rssm.weights, rssm.kind, (actor,), out, heads
    return Case(ops.gru_rssm_imagine, args, (0, 1, 2, 3))


def mixture(joint: bool) -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, 5) if joint else normal(B, 3, 5), normal(B, 3, 5), 0.3 * normal(B, 3, 5)


def mdn_sample(joint: bool) -> Case:
    args = *mixture(joint), uniform(B) if joint else uniform(B, 3), normal(B, 3)
    return Case(lambda m, s, t, u, n: ops.mdn_sample(m, s, t, 0.9, u, n), args, differentiable=False)


def rollout(extra: tuple[str, ...]) -> Case:
    Z, A, H, K = 3, 2, 6, 5
    out = len(extra) + 3 * Z * K
    weights = MDNRNNWeights(normal(4 * H, Z + A), normal(4 * H, H), normal(4 * H), normal(out, H), normal(out))
    weights.out_bias[: len(extra)] = -9  # no dream ends early
    stream = torch.stack([torch.arange(B), torch.zeros(B, dtype=torch.int64)], -1)

    def dream(*args: Any) -> Any:
        return ops.mdn_rnn_imagine(*args, stream, T, extra, trajectories=True)

    return Case(dream, (normal(B, Z), normal(B, A, Z + H), normal(B, A), weights), differentiable=False)


CASES: dict[str, Callable[[], Case]] = {
    "categorical": lambda: categorical("straight_through", 0.01),
    "categorical_without_unimix": lambda: categorical("straight_through", 0.0),
    "gumbel": lambda: categorical("gumbel", 0.01),
    "gumbel_without_unimix": lambda: categorical("gumbel", 0.0),
    "kl": lambda: Case(ops.categorical_kl, (normal(B, 3, 7), normal(B, 3, 7), 0.01, 0.1)),
    "kl_without_unimix": lambda: Case(ops.categorical_kl, (normal(B, 3, 7), normal(B, 3, 7), 0.0, 0.1)),
    "entropy": lambda: Case(ops.categorical_entropy, (normal(B, 7),)),
    "entropy_without_unimix": lambda: Case(ops.categorical_entropy, (normal(B, 7), 0.0)),
    "two_hot_loss": two_hot_loss,
    "two_hot_mean": lambda: Case(lambda x: ops.two_hot_mean(x, torch.linspace(-3, 3, 9).to(x)), (normal(B, 9),)),
    "symlog": lambda: Case(ops.symlog, (normal(B),)),
    "symexp": lambda: Case(ops.symexp, (normal(B),)),
    "lambda_return": lambda: Case(ops.lambda_return, (normal(T, B), uniform(T, B), normal(T, B), uniform(T, B)), (3,)),
    "rms_norm_silu": lambda: Case(ops.rms_norm_silu, (normal(B, 6), normal(6))),
    "rms_norm_silu_wide": lambda: Case(ops.rms_norm_silu, (normal(B, 70), normal(70))),
    "layer_norm_silu": lambda: Case(ops.layer_norm_silu, (normal(B, 6), normal(6), normal(6))),
    "layer_norm_elu": lambda: Case(ops.layer_norm_elu, (normal(B, 6), normal(6), normal(6))),
    "layer_norm_elu_wide": lambda: Case(ops.layer_norm_elu, (normal(B, 70), normal(70), normal(70))),
    "gru_gates": lambda: Case(ops.gru_gates, (normal(B, 12), normal(B, 12), normal(B, 4))),
    "block_gru_gates": lambda: Case(ops.block_gru_gates, (normal(B, 12), normal(B, 4), 2)),
    "layernorm_gru_gates": lambda: Case(ops.layernorm_gru_gates, (normal(B, 12), normal(12), normal(12), normal(B, 4))),
    "lstm_gates": lambda: Case(ops.lstm_gates, (normal(B, 16), normal(B, 16), normal(B, 4))),
    "planet_gru_reset": lambda: Case(ops.planet_gru_reset, (normal(B, 8), normal(B, 4))),
    "planet_gru_update": lambda: Case(ops.planet_gru_update, (uniform(B, 4), normal(B, 4), normal(B, 4))),
    "gru_scan": lambda: Case(
        lambda *x: ops.gru_scan(*x[:-1], is_first=x[-1]),
        (normal(T, B, 3), normal(B, 6), normal(18, 3), normal(18, 6), normal(18), normal(18), first()),
    ),
    "lstm_scan": lambda: Case(
        lambda *x: ops.lstm_scan(*x[:-1], is_first=x[-1]),
        (normal(T, B, 3), normal(B, 6), normal(B, 6), normal(24, 3), normal(24, 6), normal(24), normal(24), first()),
    ),
    "layernorm_gru_scan": lambda: Case(
        ops.layernorm_gru_scan,
        (normal(T, B, 3), normal(B, 6), normal(18, 9), normal(18), normal(18), normal(18), first()),
    ),
    "planet_gru_scan": lambda: Case(
        ops.planet_gru_scan,
        (normal(T, B, 3), normal(B, 6), normal(12, 9), normal(12), normal(6, 9), normal(6), first()),
    ),
    "block_gru_scan": block_gru,
    "mlp": lambda: Case(
        ops.mlp, (normal(B, 6), MLPWeights(layers(14, 7, 7), LinearWeights(normal(3, 7), normal(3))), normal(B, 8))
    ),
    "mlp_relu": lambda: mlp("relu", False),
    "mlp_layer_norm_relu": lambda: mlp("relu", True),
    "mlp_elu": lambda: mlp("elu", False),
    "rssm_observe": rssm_observe,
    "rssm_imagine": lambda: rssm_imagine(0.0),
    "rssm_imagine_with_unimix": lambda: rssm_imagine(0.01),
    "rssm_open_loop": open_loop,
    **{f"gru_rssm_observe_{name}": (lambda name=name: gru_observe(name)) for name in VARIANTS},
    **{f"gru_rssm_open_loop_{name}": (lambda name=name: gru_imagine(name)) for name in VARIANTS},
    **{f"gru_rssm_imagine_{name}": (lambda name=name: gru_dream(name)) for name in VARIANTS},
    "mdn_nll": lambda: Case(ops.mdn_nll, (*mixture(False), normal(B, 3))),
    "mdn_nll_joint": lambda: Case(ops.mdn_nll, (*mixture(True), normal(B, 3))),
    "mdn_sample": lambda: mdn_sample(False),
    "mdn_sample_joint": lambda: mdn_sample(True),
    "mdn_rnn_imagine": lambda: rollout(()),
    "mdn_rnn_imagine_heads": lambda: rollout(("done", "reward")),
    "mdn_rnn_imagine_done": lambda: rollout(("done",)),
}


def make(name: str, dtype: torch.dtype, device: str) -> tuple[Case, list[Any], Any]:
    """The case, its arguments' leaves, and the arguments' structure."""
    GENERATOR.manual_seed(0)
    torch.manual_seed(0)
    case = CASES[name]()
    leaves, structure = tree_flatten(case.args)
    floating = [isinstance(x, Tensor) and x.is_floating_point() for x in leaves]
    leaves = [x.detach().to(device, dtype) if f else x.to(device) if isinstance(x, Tensor) else x
              for x, f in zip(leaves, floating)]  # fmt: skip
    return case, leaves, structure


def results(case: Case, leaves: list[Any], structure: Any) -> dict[str, Tensor]:
    """Everything that the operator returns, and the gradients of its inputs under fixed cotangents."""
    floating = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    wanted = [i for i in floating if case.differentiable and i not in case.data]
    leaves = [x.clone().requires_grad_(i in wanted) if isinstance(x, Tensor) else x for i, x in enumerate(leaves)]
    with torch.set_grad_enabled(case.differentiable):
        outputs = tree_flatten(case.operator(*tree_unflatten(leaves, structure)))[0]
    outputs = [x for x in outputs if x is not None]
    smooth = [x for x in outputs if x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in smooth]
    inputs = [leaves[i] for i in wanted]
    grads = torch.autograd.grad(smooth, inputs, cotangents, allow_unused=True) if smooth else []
    values = {f"result {k}": x.detach() for k, x in enumerate(outputs)}
    return values | {f"gradient {k}": torch.zeros_like(x) if g is None else g for k, x, g in zip(wanted, inputs, grads)}


def marks(x: Tensor) -> Tensor:
    return x.isnan() if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


def others(x: Tensor) -> Tensor:
    """The rows without NaN; nothing of what has no rows."""
    axis = x.shape.index(B) if B in x.shape else None
    return x[:0] if axis is None else x.index_select(axis, torch.arange(B)[torch.arange(B) != ROW].to(x.device))


def changed(leaves: list[Any], i: int, value: float) -> list[Any]:
    """One number of leaf `i` is another: the middle one of the row, or of a weight."""
    x = leaves[i].clone()
    part = x.select(x.shape.index(B), ROW) if B in x.shape else x
    flat = part.reshape(-1).clone()
    flat[len(flat) // 2] = value if math.isnan(value) else flat[len(flat) // 2] + value
    part.copy_(flat.view(part.shape))
    return [*leaves[:i], x, *leaves[i + 1 :]]


def check(name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    case, leaves, structure = make(name, dtype, device)
    clean = results(case, leaves, structure)
    with fastwm.backend("ref"):
        exact = results(case, leaves, structure)
    assert not any(marks(x).any() for x in clean.values())
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        broken = changed(leaves, i, math.nan)
        ours = results(case, broken, structure)
        with fastwm.backend("ref"):
            wanted, moved = results(case, broken, structure), results(case, changed(leaves, i, 0.37), structure)
        by_row = B in leaf.shape
        for result, x in ours.items():
            where = f"{name}: NaN in leaf {i} {list(leaf.shape)}, {result} {list(x.shape)}"
            missing = marks(wanted[result]) & ~marks(x)
            surplus = marks(x) & ~marks(wanted[result])
            if result.startswith("result"):
                missing |= (exact[result] != moved[result]) & ~marks(x) if x.is_floating_point() else False
                assert not surplus.any(), where
            # NaN in a row of a weight that no latent selects is not read by kernels.
            assert not (missing & (by_row | (exact[result] != moved[result]))).any(), where
            if by_row:
                assert torch.equal(others(x), others(clean[result])), where


@pytest.mark.parametrize("name", CASES)
def test_nan_in_is_nan_out(on: Target, name: str) -> None:
    check(name, torch.float32, on.device)


@pytest.fixture(params=_lib.host.isa_levels() if _lib.host else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert _lib.host is not None
    before = _lib.host.isa()
    _lib.host.set_isa(request.param)
    yield request.param
    _lib.host.set_isa(before)


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(isa: str, name: str) -> None:
    check(name, torch.float64 if isa == "baseline" else torch.float32)


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton is tested in this process")
@pytest.mark.skipif("triton" not in _lib.problems or "not installed" in _lib.problems["triton"], reason="no Triton")
def test_interpreted_kernels() -> None:
    """The families that Triton serves, under its interpreter, which must be chosen before import."""
    files = [__file__, str(Path(__file__).with_name("test_inverse_cdf.py"))]
    chosen = "triton and not (rssm or scan or mlp or rollout or dream or distribution or policy)"
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
