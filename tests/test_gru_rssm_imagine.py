"""Imagining and dreaming with PlaNet's, V1's and V2's RSSM: every variant and action head against the reference."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.nn import DREAMER_V2, RSSM, BlockRSSM, Dense
from fastwm.nn.gru_rssm import GRURSSM, VARIANTS, GRUState
from fastwm.ops import GRURSSMKind, LinearWeights, PolicyHead, gru_rssm_imagine, gru_rssm_open_loop

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

DREAMERV3_2023 = VARIANTS["dreamer_v3_2023"]._replace(classes=3)
CASES: dict[str, tuple[Any, bool]] = {  # kind, and whether its dense layers have norms
    "planet": (VARIANTS["planet"], False),
    "dreamer_v1": (VARIANTS["dreamer_v1"], False),
    "dreamer_v2": (VARIANTS["dreamer_v2"]._replace(classes=3), False),
    "dreamer_v3_2023": (DREAMERV3_2023, True),
    "gru with categoricals": (GRURSSMKind("gru", "relu", classes=4), True),
    "planet_gru with categoricals": (GRURSSMKind("planet_gru", "silu", classes=2, unimix=0.1), False),
    "layernorm_gru with Gaussians": (GRURSSMKind("layernorm_gru", "elu"), False),
}
HEADS: dict[str, tuple[PolicyHead, ...]] = {
    "onehot": (PolicyHead(2, 3, "onehot"),),
    "tanh_normal": (PolicyHead(2, 0, "tanh_normal", 1e-4, 0.7),),
    "trunc_normal": (PolicyHead(3, 0, "trunc_normal"),),
    "all": (PolicyHead(1, 4, "onehot"), PolicyHead(2, 0, "trunc_normal", 0.2), PolicyHead(1, 0, "tanh_normal")),
}
SIZES = dict(deter=6, hidden=5, stoch=3)


class Policy(NamedTuple):
    layers: list[Dense]
    out: torch.nn.Linear
    heads: tuple[PolicyHead, ...]

    @property
    def params(self) -> list[Tensor]:
        return [p for module in (*self.layers, self.out) for p in module.parameters()]

    def args(self) -> tuple[Any, ...]:
        return tuple(layer.params for layer in self.layers), LinearWeights(self.out.weight, self.out.bias), self.heads


def make(
    case: str, H: int, N: int, heads: tuple[PolicyHead, ...] = HEADS["all"], dtype: torch.dtype = torch.float64,
    units: tuple[int, ...] = (7, 4), **sizes: int,
) -> tuple[GRURSSM, Policy, list[Tensor], Tensor]:  # fmt: skip
    """Model, policy, start states and noise, and the policy's noise; actions are as wide as the heads are."""
    torch.manual_seed(0)
    kind, norm = CASES[case]
    A = sum(head.size * (head.classes or 1) for head in heads)
    rssm = GRURSSM(kind, 2, A, **(SIZES | sizes), norm=norm)
    widths = [rssm.feat_dim, *units]
    layers = [Dense(i, o, style=DREAMER_V2.normed(norm and k == 0)) for k, (i, o) in enumerate(pairwise(widths))]
    out = torch.nn.Linear(widths[-1], sum(head.size * (head.classes or 2) for head in heads))
    for module in (rssm, *layers, out):
        module.to(dtype)
        for p in module.parameters():
            p.data += 0.3 * torch.randn_like(p)
    flat = (rssm.stoch, kind.classes) if kind.classes else (rssm.stoch,)
    draw = torch.rand if kind.classes else torch.randn
    args = [torch.randn(N, rssm.deter), torch.randn(N, *flat), draw(H, N, rssm.stoch)]
    draws = [(torch.randn if head.dist == "tanh_normal" else torch.rand)(H, N, head.size) for head in heads]
    return rssm, Policy(layers, out, heads), [x.to(dtype) for x in args], torch.cat(draws, -1).to(dtype)


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in outputs]
    return list(torch.autograd.grad([(x * y).sum() for x, y in zip(outputs, weights)], inputs, allow_unused=True))


def against_reference(inputs: list[Tensor], operator: Callable[..., tuple[Tensor, ...]], *args: Any) -> None:
    ours = operator(*args)
    our_grads = gradients(ours, inputs)
    with fastwm.backend("ref"):
        exact = operator(*args)
        exact_grads = gradients(exact, inputs)
    assert_close(ours, exact, atol=1e-9, rtol=1e-9)
    for x, y, of in zip(our_grads, exact_grads, inputs):
        zero = torch.zeros_like(of)
        assert_close(zero if x is None else x, zero if y is None else y, atol=1e-8, rtol=1e-8)
    assert sum(y is not None and bool(y.any()) for y in exact_grads) >= 2 or ours[0].numel() == 0


@needs_cpu
@pytest.mark.parametrize("case", CASES)
def test_imagine_equals_reference(case: str) -> None:
    for H, N in [(1, 1), (4, 7), (15, 3), (2, 150), (3, 0)]:
        rssm, _, args, _ = make(case, H, N)
        with torch.no_grad():
            given = *args, 2 * torch.rand(H, N, 7, dtype=torch.float64), rssm.weights, rssm.kind
            ours = gru_rssm_open_loop(*given)
            with fastwm.backend("ref"):
                assert_close(ours, gru_rssm_open_loop(*given), atol=1e-9, rtol=1e-9)
        action = torch.randn(H, N, 7, dtype=torch.float64, requires_grad=True)
        for x in args[:2]:
            x.requires_grad_()
        inputs = [action, *args[:2], *(p for name, p in rssm.named_parameters() if "post" not in name)]
        against_reference(inputs, gru_rssm_open_loop, *args, action, rssm.weights, rssm.kind)


@needs_cpu
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("case", CASES)
def test_dream_equals_reference(case: str, heads: str) -> None:
    for H, N in [(1, 1), (4, 7), (15, 3)]:
        rssm, policy, args, noise = make(case, H, N, HEADS[heads])
        given = *args, noise, rssm.weights, rssm.kind, *policy.args()
        against_reference(policy.params, gru_rssm_imagine, *given)


@needs_cpu
@pytest.mark.parametrize("units", [(), (40,), (33, 33, 33, 17)])
@pytest.mark.parametrize("case", ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3_2023"])
def test_dream_of_many_rows(case: str, units: tuple[int, ...]) -> None:
    """Several parts of rows, columns beyond a panel, chunks of steps that do not divide the horizon."""
    for H, N in [(3, 1024), (5, 37), (2, 0)]:
        rssm, policy, args, noise = make(case, H, N, units=units, deter=37, hidden=34, stoch=9)
        given = *args, noise, rssm.weights, rssm.kind, *policy.args()
        against_reference(policy.params, gru_rssm_imagine, *given)


@needs_cpu
def test_the_model_is_constant_and_the_actors_input_is_cut() -> None:
    for backend in ("cpu", "ref"):
        rssm, policy, args, noise = make("dreamer_v1", 3, 4)
        for x in args[:2]:
            x.requires_grad_()
        with fastwm.backend(backend):
            outputs = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
            one = gru_rssm_imagine(*(x[:1] if x is args[2] else x for x in args), noise[:1], rssm.weights, rssm.kind,
                                 *policy.args())  # fmt: skip
        assert all(g is None for g in gradients(outputs, [*args[:2], *rssm.parameters()]))
        # The first action reaches the first state, and is reached by no gradient of its input.
        assert all(g is not None for g in gradients(one[:1], policy.params))


@needs_cpu
def test_without_gradient_nothing_is_saved() -> None:
    rssm, policy, args, noise = make("dreamer_v2", 3, 4)
    with captured("gru_rssm_imagine") as calls:
        with torch.no_grad():
            gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
    assert [call[-2] for call in calls] == [False, True]
    assert [len(x) for x in torch.ops.fastwm.gru_rssm_imagine(*calls[0])[4:]] == [0, 0, 0, 0]


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["planet", "dreamer_v1", "dreamer_v2"])
def test_every_instruction_set(case: str, isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    rssm, policy, args, noise = make(case, 2, 37, dtype=dtype, deter=50, hidden=40, stoch=5)
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        ours_grads = gradients(ours, policy.params)
    finally:
        _lib.host.set_isa(before)
    with fastwm.backend("ref"):
        exact = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        exact_grads = gradients(exact, policy.params)
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-11}[dtype]
    assert_close(ours, exact, atol=tolerance, rtol=tolerance)
    scale = max(g.abs().max() for g in exact_grads if g is not None)
    assert_close(ours_grads, exact_grads, atol=float(10 * tolerance * scale), rtol=10 * tolerance)


@needs_cpu
@pytest.mark.parametrize("case", ["planet", "dreamer_v1", "dreamer_v2"])
def test_repeats_are_bitwise_equal_and_threads_change_no_value(case: str) -> None:
    rssm, policy, args, noise = make(case, 5, 300, dtype=torch.float32, deter=40, hidden=40)
    action = torch.randn(5, 300, 7)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        dreamt = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        imagined = gru_rssm_open_loop(*args, action, rssm.weights, rssm.kind)
        with torch.no_grad():
            dreamt += gru_rssm_open_loop(*args, action, rssm.weights, rssm.kind)
        results.append((dreamt, [*imagined, *gradients(dreamt[:4], policy.params)]))
    torch.set_num_threads(threads)
    for outputs, _ in results[1:]:
        assert all(map(torch.equal, results[0][0], outputs))
    # The hoisted product of the actions, and the order in which the threads' sums are added, depend on their number.
    assert all(map(torch.equal, results[1][1], results[2][1]))  # type: ignore[arg-type]


@contextmanager
def captured(name: str) -> Iterator[list[tuple[Any, ...]]]:
    """What the operator of a module is called with."""
    module, calls = sys.modules[f"fastwm.ops.{name}"], []
    forward = module._forward

    class Capture:
        library = forward.library

        def __call__(self, library: str, *inputs: Any) -> Any:
            calls.append(tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs))
            return forward(library, *inputs)

    module._forward = Capture()
    try:
        yield calls
    finally:
        module._forward = forward


@needs_cpu
@pytest.mark.parametrize("case", ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3_2023"])
def test_opcheck_and_compile(case: str) -> None:
    rssm, policy, args, noise = make(case, 2, 3)
    action = torch.randn(2, 3, 7, dtype=torch.float64)

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        dreamt = gru_rssm_imagine(*x[:4], rssm.weights, rssm.kind, *policy.args())
        return dreamt + gru_rssm_open_loop(*x[:3], x[4], rssm.weights, rssm.kind)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    ours, want = compiled(*args, noise, action), run(*args, noise, action)
    assert_close(ours, want)
    assert_close(gradients(ours[:4], policy.params), gradients(want[:4], policy.params))
    with captured("gru_rssm_imagine") as calls:
        gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
    actor = next(i for i, x in enumerate(calls[0]) if isinstance(x, list)) - 1
    inputs = [x.requires_grad_() if i == actor else x for i, x in enumerate(calls[0])]
    torch.library.opcheck(torch.ops.fastwm.gru_rssm_imagine.default, tuple(inputs))
    with captured("gru_rssm_imagine") as calls, torch.no_grad():
        gru_rssm_open_loop(*args, action, rssm.weights, rssm.kind)
    torch.library.opcheck(torch.ops.fastwm.gru_rssm_imagine.default, calls[0])
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            wrong = [*inputs[:i], x.detach()[..., :-1], *inputs[i + 1 :]]
            with pytest.raises(RuntimeError, match="fastwm"):
                torch.ops.fastwm.gru_rssm_imagine(*wrong)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("deter", lambda x: x[:, :3], "expected cell"),
    ("stoch", lambda x: x.float(), "one dtype"),
    ("stoch", lambda x: x[..., 0], r"stoch \[N, S, C\]"),
    ("noise", lambda x: x[:0], "H >= 1"),
    ("noise", lambda x: x[:, :, :2], r"noise \[4, 7, 3\]"),
    ("noise", lambda x: x.to("meta"), "meta"),
    ("action", lambda x: x[:-1], r"\[4, 7, .*\[3, 7"),
    ("action", lambda x: x[..., :-1], "expected (input|action_noise)"),
]


@pytest.mark.parametrize("operator", ["imagine", "dream"])
@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_wrong_arguments_are_explained(operator: str, name: str, change: Callable[[Any], Any], message: str) -> None:
    rssm, policy, (deter, stoch, noise), action_noise = make("dreamer_v2", 4, 7)
    given = dict(deter=deter, stoch=stoch, noise=noise)
    given["action"] = action_noise if operator == "dream" else torch.randn(4, 7, 7, dtype=torch.float64)
    given[name] = change(given[name])
    call, more = (gru_rssm_imagine, policy.args()) if operator == "dream" else (gru_rssm_open_loop, ())
    with pytest.raises(ValueError, match=message):
        call(*given.values(), rssm.weights, rssm.kind, *more)


def test_wrong_policies_are_explained() -> None:
    rssm, policy, args, noise = make("dreamer_v2", 4, 7)
    layers, out, heads = policy.args()
    wrong: list[tuple[Any, str]] = [
        ((layers, out, ()), "needs a head"),
        ((layers, out, (PolicyHead(2, 0, "onehot"), *heads)), "heads with classes"),
        ((layers[1:], out, heads), r"actor\[0\]"),
        ((layers[:1], out, heads), "actor_out"),
        ((layers, LinearWeights(out.weight[1:], out.bias[1:]), heads), "actor_out"),
    ]
    for args_of_policy, message in wrong:
        with pytest.raises(ValueError, match=message):
            gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *args_of_policy)


@needs_cpu
def test_extreme_policies_stay_finite_and_exact() -> None:
    """Saturated means and tiny deviations: the tails of the Normal, both ends of the uniform, in float32 too."""
    heads = (PolicyHead(4, 0, "trunc_normal", 1e-3), PolicyHead(2, 0, "tanh_normal", 1e-3))
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        rssm, policy, args, noise = make("dreamer_v2", 2, 64, heads, dtype=dtype)
        policy.out.bias.data = torch.tensor([9.0, -9, 0.1, 2, -40, -40, -9, 5, 30, -30, 40, -40], dtype=dtype)
        noise[..., :4] = torch.rand_like(noise[..., :4]).pow(4)
        noise[0, :8, :4] = 0.0
        noise[0, 8:16, :4] = 1 - 2**-24
        outputs = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        assert all(g is not None and g.isfinite().all() for g in gradients(outputs, policy.params))
        double = [x.double() for x in args]
        for module in (rssm, *policy.layers, policy.out):
            module.double()
        with fastwm.backend("ref"), torch.no_grad():
            exact = gru_rssm_imagine(*double, noise.double(), rssm.weights, rssm.kind, *policy.args())
        assert_close(outputs[3][0].double(), exact[3][0], atol=tolerance, rtol=tolerance)


@needs_cpu
@pytest.mark.parametrize("case", ["planet", "dreamer_v1", "dreamer_v2"])
@pytest.mark.parametrize("N", [1, 16, 150])
def test_bfloat16_error_is_within_twice_pytorchs(case: str, N: int) -> None:
    """One step, so that no flipped sample parts the trajectories; both against float64."""
    sizes = dict(deter=96, hidden=40, stoch=5, units=(64, 64), heads=HEADS["tanh_normal"])
    rssm, policy, args, noise = make(case, 1, N, **sizes)  # type: ignore[arg-type]
    with fastwm.backend("ref"):
        exact = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
        exact_grads = gradients(exact[:1], policy.params)
    for module in (rssm, *policy.layers, policy.out):
        module.float()
    args, noise = [x.float() for x in args], noise.float()

    def reduced(backend: str) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
        with fastwm.backend(backend):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = gru_rssm_imagine(*args, noise, rssm.weights, rssm.kind, *policy.args())
            return outputs, gradients(outputs[:1], policy.params)

    (ours, our_grads), (theirs, their_grads) = reduced("cpu"), reduced("ref")
    for i in (0, 2, 3):
        x, y, truth = ours[i].double(), theirs[i].double(), exact[i]
        assert ours[i].dtype == torch.float32
        assert (x - truth).norm() <= 2 * (y - truth).norm() + 1e-6 and (x - truth).norm() <= 0.05 * truth.norm()
    for x, y, truth in zip(our_grads, their_grads, exact_grads):
        assert x is not None and y is not None and truth is not None
        assert (x - truth).norm() <= 2 * (y - truth).norm() + 1e-5 * (1 + truth.norm())


@pytest.mark.parametrize("backend", ["ref", pytest.param("cpu", marks=needs_cpu)])
def test_module_imagines(backend: str) -> None:
    rssm, _, (deter, stoch, noise), _ = make("dreamer_v2", 4, 7, dtype=torch.float32)
    action = torch.randn(4, 7, 7)
    with fastwm.backend(backend), torch.no_grad():
        states, stats = rssm.open_loop(GRUState(deter, stoch), action, noise)
        last, _ = rssm.open_loop(GRUState(states.deter[0], states.stoch[0]), action[1:], noise[1:])
    assert_close(states.deter[1:], last.deter)
    assert_close(stats, rssm.prior_stats_of(states.deter), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [*VARIANTS, "dreamer_v3"])
def test_one_name_owns_the_parameters_of_every_variant(variant: str) -> None:
    classes = {} if VARIANTS.get(variant, DREAMERV3_2023).classes == 0 else {"classes": 4}
    blocks = {"blocks": 2} if variant == "dreamer_v3" else {}
    rssm = RSSM(variant, tokens=5, action=2, deter=6, hidden=8, stoch=3, **classes, **blocks)
    assert isinstance(rssm, BlockRSSM) == (variant == "dreamer_v3")
    first = torch.zeros(4, 2, dtype=torch.bool)
    states, _ = rssm.observe(rssm.initial(2), torch.randn(4, 2, 2), torch.randn(4, 2, 5), first)
    start = type(states)(states.deter[-1], states.stoch[-1])
    dreamt, _ = rssm.open_loop(start, torch.randn(7, 2, 2))
    latent = (3, 4) if classes else (3,)
    assert dreamt.deter.shape == (7, 2, 6) and dreamt.stoch.shape == (7, 2, *latent)
    sum(x.sum() for x in (*states, *dreamt)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in rssm.parameters())
    names = dict(rssm.named_parameters())
    assert ("input.norm.weight" in names) == (variant == "dreamer_v3_2023")
    assert ("input.linear.bias" in names) == (variant in ("planet", "dreamer_v1", "dreamer_v2"))
    with pytest.raises(ValueError, match="unknown variant 'rssm'; there are planet"):
        RSSM("rssm", 5, 2, 6, 8, 3)
