"""The observe sequence: every backend against the reference, gradients, resets, contracts (T1-T3, T5-T8, T10, T13)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.nn import BlockRSSM, State
from fastwm.ops import rssm_observe
from tests import cuda_emulator
from tests.conftest import Target
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

TINY = dict(deter=8, hidden=6, stoch=4, classes=5, blocks=2)
WIDE = dict(deter=512, hidden=64, stoch=32, classes=4, blocks=8)  # size1m; in float64 threads split its columns


def make(
    T: int, B: int, sizes: dict[str, int] = TINY, dtype: torch.dtype = torch.float64, resets: float = 0.2, seed: int = 0
) -> tuple[BlockRSSM, list[Tensor]]:
    """A model with every parameter moved off its initial value, and the arguments of `rssm_observe` before weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    rssm = BlockRSSM(tokens=7, action=3, **sizes).to(dtype)
    with torch.no_grad():
        for p in rssm.parameters():
            fan_in = p.shape[-1] if p.ndim == 2 else p.shape[-2] if p.ndim == 3 else 25
            p.copy_((p.ndim == 1) * p + draw(*p.shape) / fan_in**0.5)
    first = torch.rand(T, B, generator=generator) < resets
    start = (draw(B, rssm.deter), draw(B, rssm.stoch, rssm.classes))
    uniform = torch.rand(T, B, rssm.stoch, generator=generator, dtype=torch.float64).to(dtype)
    return rssm, [draw(T, B, 7).requires_grad_(), (2 * draw(T, B, 3)).requires_grad_(), first, *start, uniform]


def with_grads(rssm: BlockRSSM, args: list[Tensor], seed: int = 1) -> dict[str, Tensor]:
    """All outputs, and the gradients of everything that has one under random cotangents."""
    outputs = rssm_observe(*args, rssm.observe_weights(), rssm.unimix)
    generator = torch.Generator().manual_seed(seed)
    outs = [outputs[0], outputs[1], outputs[3]]
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outs]
    leaves = {"tokens": args[0], "action": args[1]}
    leaves |= {name: p for name, p in rssm.named_parameters() if not name.startswith("prior")}
    grads = torch.autograd.grad(outs, list(leaves.values()), cotangents)
    values = dict(zip(("deter", "stoch", "index", "logits"), outputs))
    return {k: v.detach() for k, v in values.items()} | dict(zip(leaves, grads))


def reference(rssm: BlockRSSM, args: list[Tensor]) -> dict[str, Tensor]:
    with fastwm.backend("ref"):
        return with_grads(rssm, args)


def assert_all_close(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    for name, want in exact.items():
        scale = max(1.0, want.abs().max().item() if want.numel() else 1.0)
        assert_close(
            ours[name].double(), want.double(), atol=tolerance * scale, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


# Against the reference


def moved(rssm: BlockRSSM, args: list[Tensor], device: str) -> tuple[BlockRSSM, list[Tensor]]:
    return rssm.to(device), [x.detach().to(device).requires_grad_(x.requires_grad) for x in args]


@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("T", "B"), [(1, 0), (1, 1), (1, 3), (3, 16), (5, 33), (64, 2)])
def test_equals_reference(native: Target, T: int, B: int, resets: float) -> None:
    rssm, args = moved(*make(T, B, resets=resets), native.device)
    assert_all_close(with_grads(rssm, args), reference(rssm, args), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_reference_at_size1m(native: Target, dtype: torch.dtype) -> None:
    """Sizes that fill tiles, several of them a row; the float32 error is that of its rounding."""
    rssm, args = moved(*make(3, 17, WIDE, dtype), native.device)
    exact = reference(*((rssm, args) if dtype == torch.float64 else make_double(rssm, args)))
    assert_all_close(with_grads(rssm, args), exact, {torch.float32: 1e-4, torch.float64: 1e-10}[dtype])


@needs_cpu
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("B", [3, 20, 200])
def test_threads_by_rows_and_by_columns(count: int, B: int) -> None:
    """Few rows of a wide model are split by columns, many by rows; chunks of the weights' gradients end anywhere."""
    rssm, args = make(9 if B == 20 else 3, B, WIDE)
    with threads(count):
        ours = with_grads(rssm, args)
    assert_all_close(ours, reference(rssm, args), 1e-10)


@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    assert _lib.host is not None
    rssm, args = make(6, 21, dict(deter=96, hidden=40, stoch=5, classes=7, blocks=3), dtype)
    exact = reference(*((rssm, args) if dtype == torch.float64 else make_double(rssm, args)))
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = with_grads(rssm, args)
    finally:
        _lib.host.set_isa(before)
    assert torch.equal(ours["index"], exact["index"])
    assert_all_close(ours, exact, {torch.float32: 1e-5, torch.float64: 1e-12}[dtype])


def make_double(rssm: BlockRSSM, args: list[Tensor]) -> tuple[BlockRSSM, list[Tensor]]:
    """The same numbers in float64."""
    doubled = [x.detach().double() if x.is_floating_point() else x for x in args]
    for x in doubled[:2]:
        x.requires_grad_()
    return deepcopy(rssm).double(), doubled


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    T=st.integers(1, 6),
    B=st.integers(0, 5),
    blocks=st.integers(1, 4),
    block=st.integers(1, 9),
    hidden=st.integers(1, 40),
    stoch=st.integers(1, 5),
    classes=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    native: Target, T: int, B: int, blocks: int, block: int, hidden: int, stoch: int, classes: int, seed: int
) -> None:
    sizes = dict(deter=blocks * block, hidden=hidden, stoch=stoch, classes=classes, blocks=blocks)
    rssm, args = moved(*make(T, B, sizes, seed=seed), native.device)
    assert_all_close(with_grads(rssm, args), reference(rssm, args), 1e-10)


@needs_cpu
def test_any_strides() -> None:
    rssm, args = make(4, 3)
    strided = [x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_(x.requires_grad) for x in args]
    assert not strided[0].is_contiguous()
    transposed = rssm.core.embed_carry.linear
    with torch.no_grad():
        transposed.weight.set_(transposed.weight.mT.contiguous().mT)
    assert_all_close(with_grads(rssm, strided), reference(rssm, args), 1e-10)


def test_equals_the_modules_own_steps() -> None:
    """The reference is the loop over `observe_step`, which acting uses and the golden files check."""
    rssm, args = make(5, 3, dtype=torch.float32)
    tokens, action, first, deter, stoch, uniform = args
    state, logits = rssm.observe(State(deter, stoch), action, tokens, first, uniform)
    step = State(deter, stoch)
    for t in range(5):
        step, logit = rssm.observe_step(step, action[t], tokens[t], first[t], uniform[t])
        assert_close(state.deter[t], step.deter, atol=1e-5, rtol=0)
        assert_close(logits[t], logit, atol=1e-5, rtol=0)
        assert torch.equal(state.stoch[t].argmax(-1), step.stoch.argmax(-1))


def test_more_posterior_layers_take_the_steps() -> None:
    _, (tokens, action, first, deter, stoch, uniform) = make(3, 2, dtype=torch.float32)
    deep = BlockRSSM(7, 3, **TINY, post_layers=2)
    state, logits = deep.observe(State(deter, stoch), action, tokens, first, uniform)
    assert state.deter.shape == (3, 2, 8) and logits.shape == (3, 2, 4, 5) and logits.requires_grad


# Meaning


@pytest.fixture(params=["ref", pytest.param("cpu", marks=needs_cpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastwm.backend(request.param):
        yield request.param


def test_t7_a_reset_forgets_start_and_action(backend: str) -> None:
    rssm, args = make(3, 2, resets=0.0)
    args[2][1, 0] = True
    moved = [args[0], args[1].detach().clone(), args[2], args[3] + 1, args[4] + 1, args[5]]
    moved[1][:2] += 1.0
    ours, other = (rssm_observe(*a, rssm.observe_weights()) for a in (args, moved))
    for a, b in zip(ours, other):
        assert torch.equal(a[1:, 0], b[1:, 0])
    assert not torch.equal(ours[0][1:, 1], other[0][1:, 1])


def test_t10_the_samples_gradient_does_not_depend_on_the_noise(backend: str) -> None:
    """With one step, d(sample . w) / d logits is the Jacobian of the mixed probabilities."""
    rssm, args = make(1, 4)
    grads = []
    for u in (args[5], 1 - args[5]):
        outputs = rssm_observe(*args[:5], u, rssm.observe_weights())
        grads.append(torch.autograd.grad((outputs[1] * torch.arange(5)).sum(), rssm.post[1].weight)[0])
    assert_close(*grads)
    assert grads[0].abs().max() > 0


def test_samples_follow_the_mixed_probabilities(backend: str) -> None:
    """Chi-square of 20,000 samples of one categorical; five classes, so 4 degrees of freedom."""
    sizes = dict(deter=2, hidden=2, stoch=1, classes=5, blocks=1)
    rssm, args = make(1, 1, sizes)
    args = [x.detach().expand(x.shape[0], 20000, *x.shape[2:]) for x in args[:3]] + [
        x.expand(20000, *x.shape[1:]) for x in args[3:5]
    ]
    uniform = torch.rand(1, 20000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        _, stoch, index, logits = rssm_observe(*args, uniform, rssm.observe_weights(), 0.5)
    assert torch.equal(stoch.argmax(-1), index) and torch.equal(stoch.sum(-1), torch.ones_like(uniform))
    expected = 20000 * (0.5 * logits[0, 0, 0].softmax(-1) + 0.1)
    counts = torch.bincount(index.flatten(), minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # p = 0.001


def test_the_start_state_is_data(backend: str) -> None:
    rssm, args = make(2, 2)
    deter = args[3].requires_grad_()
    outputs = rssm_observe(*args[:3], deter, *args[4:], rssm.observe_weights())
    assert torch.autograd.grad(outputs[0].sum(), deter, allow_unused=True) == (None,)


# Contracts


@needs_cpu
@pytest.mark.parametrize("count", [1, 2])
def test_repeats_bitwise(count: int) -> None:
    rssm, args = make(8, 16, WIDE, torch.float32)
    with threads(count):
        first = with_grads(rssm, args)
        for _ in range(20):
            again = with_grads(rssm, args)
            assert all(torch.equal(first[name], again[name]) for name in first)


@needs_cpu
def test_without_gradients_nothing_is_saved() -> None:
    rssm, args = make(4, 3)
    want = rssm_observe(*args, rssm.observe_weights())
    with torch.no_grad():
        got = rssm_observe(*args, rssm.observe_weights())
    assert all(torch.equal(a, b) for a, b in zip(got, want)) and got[0].grad_fn is None
    raw = torch.ops.fastwm.rssm_observe(*raw_inputs(rssm, args), 0.01, 1e-4, False, False, False)
    assert all(x.numel() == 0 for x in raw[4:])


def raw_inputs(rssm: BlockRSSM, args: list[Tensor], requires_grad: bool = False) -> list[Tensor]:
    """The operator's own arguments, up to the scalars."""
    captured: list[Tensor] = []
    module = sys.modules["fastwm.ops.rssm_observe"]
    forward = module._forward

    class Capture:
        library = forward.library

        def __call__(self, library: str, *inputs: Any) -> Any:
            captured.extend(inputs[:-5])
            return forward(library, *inputs)

    module._forward = Capture()
    try:
        rssm_observe(*args, rssm.observe_weights())
    finally:
        module._forward = forward
    leaves = [x.detach().clone() for x in captured]
    return [x.requires_grad_(requires_grad and i not in (2, 3, 4, 5)) for i, x in enumerate(leaves)]


@needs_cpu
def test_opcheck() -> None:
    for T, B, dtype in [(1, 1, torch.float32), (3, 2, torch.float64)]:
        rssm, args = make(T, B, dtype=dtype)
        for save in (True, False):
            torch.library.opcheck(
                torch.ops.fastwm.rssm_observe.default, (*raw_inputs(rssm, args), 0.01, 1e-4, save, False, False)
            )
        inputs = raw_inputs(rssm, args, requires_grad=True)
        torch.library.opcheck(torch.ops.fastwm.rssm_observe.default, (*inputs, 0.01, 1e-4, True, False, False))
        inputs = [x.detach() for x in inputs]
        deter, stoch, _, logits, *saved = torch.ops.fastwm.rssm_observe(*inputs, 0.01, 1e-4, True, False, False)
        weights = [w for i, w in enumerate(inputs[6:]) if i not in (1, 4, 10, 14)]
        past = (inputs[2], inputs[3], inputs[4], deter, stoch, logits, *saved)
        torch.library.opcheck(
            torch.ops.fastwm.rssm_observe_backward.default, (deter, stoch, logits, *past, *weights, 0.01, 1e-4, False)
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_observe_compiles_whole(backend: str, dynamic: bool) -> None:
    if dynamic and backend == "ref":
        pytest.skip("tracing the loop with symbolic shapes takes 20 s")
    torch._dynamo.reset()
    rssm, (tokens, action, first, deter, stoch, uniform) = make(3, 2)
    compiled = torch.compile(rssm.observe, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for observe in (compiled, rssm.observe):
        state, logits = observe(State(deter, stoch), action, tokens, first, uniform)
        loss = state.deter.square().sum() + (state.stoch * torch.arange(5)).sum() + logits.square().sum()
        results.append([state.deter, logits, *torch.autograd.grad(loss, [tokens, *rssm.core.parameters()])])
    assert_close(*results)


@needs_cpu
def test_autocast_keeps_float32() -> None:
    rssm, args = make(3, 2, dtype=torch.float32)
    want = with_grads(rssm, args)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_grads(rssm, [args[0].detach().bfloat16().float().requires_grad_(), *args[1:]])
        assert got["logits"].dtype == torch.float32
    assert_all_close(got, want, 0.05)


@needs_cpu
def test_second_derivative_is_refused() -> None:
    rssm, args = make(2, 2)
    with fastwm.backend("cpu"):
        grad = torch.autograd.grad(rssm_observe(*args, rssm.observe_weights())[0].sum(), args[0], create_graph=True)
        with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
            grad[0].sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__(0, a[0][:0]), "T >= 1"),
        (lambda a: a.__setitem__(1, a[1][:, :1]), r"action \[4, 3, 3\].*\[4, 1, 3\]"),
        (lambda a: a.__setitem__(2, a[2].float()), "is_first to be bool"),
        (lambda a: a.__setitem__(3, a[3][:, :4]), "deter"),
        (lambda a: a.__setitem__(4, a[4].flatten(1)), r"stoch \[B, S, C\]"),
        (lambda a: a.__setitem__(4, a[4].float()), "one dtype"),
        (lambda a: a.__setitem__(5, a[5][:1]), "uniform"),
        (lambda a: a.__setitem__(5, a[5].to("meta")), "meta"),
    ],
)
def test_wrong_arguments_are_explained(change: Callable[[list[Tensor]], None], message: str) -> None:
    rssm, args = make(4, 3)
    change(args)
    with pytest.raises(ValueError, match=message):
        rssm_observe(*args, rssm.observe_weights())


@needs_cpu
def test_a_direct_call_with_wrong_tensors_does_not_crash() -> None:
    rssm, args = make(2, 2)
    inputs = raw_inputs(rssm, args)
    for i in range(len(inputs)):
        for bad in (inputs[i][..., :-1], inputs[i].to(torch.float16)):
            wrong = [*inputs[:i], bad, *inputs[i + 1 :]]
            with pytest.raises(RuntimeError, match="fastwm"):
                torch.ops.fastwm.rssm_observe(*wrong, 0.01, 1e-4, True, False, False)
    with pytest.raises(RuntimeError, match="only CUDA's kernels save gates in bfloat16"):
        torch.ops.fastwm.rssm_observe(*inputs, 0.01, 1e-4, True, True, True)


@pytest.mark.skipif(not cuda_emulator.loaded, reason="needs the emulator of CUDA")
def test_emulated_kernels_keep_gates_in_bfloat16_where_products_are() -> None:
    rssm, args = make(2, 3, ODD | dict(classes=8), torch.float32)
    inputs = raw_inputs(rssm, args)
    for compact, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        *_, gates, _ = torch.ops.fastwm_emulated.rssm_observe(*inputs, 0.01, 1e-4, True, compact, True)
        assert gates.dtype == dtype and gates.isfinite().all()


@needs_cpu
def test_peak_memory_is_not_above_the_loops() -> None:
    peak = peak_memory("""
from fastwm.nn import BlockRSSM
rssm = BlockRSSM(64, 6, 1024, 128, 32, 8)
def sequence(T, B):
    first = torch.zeros(T, B, dtype=torch.bool)
    state, logits = rssm.observe(rssm.initial(B), torch.randn(T, B, 6), torch.randn(T, B, 64), first)
    return *state, logits
""")
    assert peak["cpu"] <= peak["ref"], peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_a_gpu_is_not_above_the_loops() -> None:
    """In bfloat16, at size12m: what the way back holds, and its scratch."""
    torch.manual_seed(0)
    rssm = BlockRSSM(256, 6, 2048, 256, 32, 16).cuda()
    tokens, action = torch.randn(64, 16, 256, device="cuda"), torch.randn(64, 16, 6, device="cuda")
    first = torch.zeros(64, 16, dtype=torch.bool, device="cuda")

    def peak() -> int:
        for _ in range(2):  # the first call may load libraries, which keep memory
            rssm.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                state, logits = rssm.observe(rssm.initial(16), action, tokens, first)
            (state.deter.sum() + logits.square().sum()).backward()
            peak = torch.cuda.max_memory_allocated() - before
        return peak

    ours = peak()
    with fastwm.backend("ref"):
        theirs = peak()
    assert ours <= theirs, (ours, theirs)


def settled(rssm: BlockRSSM, args: list[Tensor]) -> list[Tensor]:
    """The same arguments with noise in the middle of each most likely class, which rounding does not move."""
    uniform = args[5].clone()
    with torch.no_grad(), fastwm.backend("ref"):
        for t in range(len(uniform)):
            _, _, _, logits = rssm_observe(*args[:5], uniform, rssm.observe_weights())
            probs = 0.99 * logits[t].softmax(-1) + 0.01 / rssm.classes
            top = probs.argmax(-1, keepdim=True)
            uniform[t] = (probs.cumsum(-1) - probs / 2).gather(-1, top)[..., 0]
    return [*args[:5], uniform]


ODD = dict(deter=192, hidden=40, stoch=5, classes=7, blocks=3)  # 5 x 7 classes: tensor cores read four numbers at once
DEEP = dict(deter=1536, hidden=272, stoch=9, classes=16, blocks=2)  # every product takes a CUDA block several turns
SIZE1M = dict(deter=512, hidden=64, stoch=32, classes=4, blocks=8)  # which one cluster of blocks can hold


@pytest.mark.parametrize(
    ("T", "B", "sizes", "cluster"),
    [(1, 1, ODD, "0"), (3, 7, ODD, "0"), (1, 1, ODD | dict(classes=8), "0"), (3, 16, ODD | dict(classes=8), "0"),
     (4, 37, ODD | dict(classes=8), "0"), (2, 3, DEEP, "0"), (5, 37, SIZE1M, "0"), (1, 1, SIZE1M, "1"),
     (5, 37, SIZE1M, "1")],
)  # fmt: skip
def test_bfloat16_error_is_within_twice_pytorchs(
    native: Target, T: int, B: int, sizes: dict[str, int], cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T48: only products are bfloat16; values and gradients against float64, with equal samples."""
    monkeypatch.setenv("FASTWM_CLUSTER", cluster)
    rssm, args = make(T, B, sizes, torch.float32)
    exact_rssm, exact_args = make_double(rssm, args)
    exact_args = settled(exact_rssm, exact_args)
    exact = {name: x.to(native.device) for name, x in reference(exact_rssm, exact_args).items()}
    args[5] = exact_args[5].float()
    rssm, args = moved(rssm, args, native.device)
    with torch.autocast(native.device, torch.bfloat16):
        ours, theirs = with_grads(rssm, args), reference(rssm, args)
    assert torch.equal(ours["index"], exact["index"]) and torch.equal(theirs["index"], exact["index"])
    for name, truth in exact.items():
        if name == "index":
            continue
        if native.backend != "triton":  # which has no kernel
            assert ours[name].dtype == torch.float32, name
        error, allowed = (x[name].double().sub(truth).norm() for x in (ours, theirs))
        assert error <= 2 * allowed + 1e-5 * truth.norm() + 1e-6, name
        assert error <= 0.05 * truth.norm() + 1e-4, name


@pytest.mark.parametrize("B", [16, 21])
def test_a_cluster_repeats_itself_bitwise(native: Target, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.backend != "cuda":
        pytest.skip("not a sequence for a cluster")
    rssm, args = moved(*make(4, B, SIZE1M, torch.float32), native.device)
    results = []
    with torch.no_grad(), torch.autocast(native.device, torch.bfloat16):
        for cluster in ("0", "1", "1"):
            monkeypatch.setenv("FASTWM_CLUSTER", cluster)
            results.append(rssm_observe(*args, rssm.observe_weights()))
    tiles, first, second = results
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    if native.device == "cpu" or torch.cuda.get_device_capability()[0] >= 9:
        assert not torch.equal(first[0], tiles[0])  # its sums have an order of their own: it did run


def test_bfloat16_of_a_start_that_lies_anywhere(native: Target) -> None:
    """Tensor cores read 16 bytes at once, where a caller's arrays begin there."""
    rssm, args = moved(*make(3, 4, ODD | dict(classes=8), torch.float32), native.device)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in args[3:5]]
    with torch.autocast(native.device, torch.bfloat16):
        want = rssm_observe(*args, rssm.observe_weights())[0]
        got = rssm_observe(*args[:3], *shifted, args[5], rssm.observe_weights())[0]
    assert_close(got[0], want[0], atol=0.03, rtol=0)


@needs_cpu
def test_bfloat16_does_not_depend_on_threads_beyond_rounding() -> None:
    rssm, args = make(9, 40, dict(deter=1024, hidden=128, stoch=32, classes=8, blocks=8), torch.float32)
    args = settled(rssm, args)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for count in (1, 2, 3):
            with threads(count):
                results.append(with_grads(rssm, args))
                assert all(torch.equal(x, results[-1][name]) for name, x in with_grads(rssm, args).items())
    for other in results[1:]:
        assert_all_close(other, results[0], 1e-2)
