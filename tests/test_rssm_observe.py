"""The observe sequence: the modules' steps, resets, samples, bfloat16. See test_contract.py for the rest."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm.nn import BlockRSSM, State
from fastwm.ops import rssm_observe
from tests import test_contract
from tests.backends import Target, needs_cpu, needs_kernel, threads
from tests.cases import CASES
from tests.cases.case import convert, lay_out
from tests.cases.models import ODD, SIZE1M
from tests.cases.run import assert_equal, assert_near, raw_call, run
from tests.memory import peak_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernel("rssm_observe")]

TINY = dict(deter=8, hidden=6, stoch=4, classes=5, blocks=2)


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


# Against the reference


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


def test_a_reset_forgets_start_and_action(on: Target) -> None:
    rssm, args = make(3, 2, resets=0.0)
    args[2][1, 0] = True
    moved = [args[0], args[1].detach().clone(), args[2], args[3] + 1, args[4] + 1, args[5]]
    moved[1][:2] += 1.0
    ours, other = (rssm_observe(*a, rssm.observe_weights()) for a in (args, moved))
    for a, b in zip(ours, other):
        assert torch.equal(a[1:, 0], b[1:, 0])
    assert not torch.equal(ours[0][1:, 1], other[0][1:, 1])


def test_the_samples_gradient_does_not_depend_on_the_noise(on: Target) -> None:
    """With one step, d(sample . w) / d logits is the Jacobian of the mixed probabilities."""
    rssm, args = make(1, 4)
    grads = []
    for u in (args[5], 1 - args[5]):
        outputs = rssm_observe(*args[:5], u, rssm.observe_weights())
        grads.append(torch.autograd.grad((outputs[1] * torch.arange(5)).sum(), rssm.post[1].weight)[0])
    assert_close(*grads)
    assert grads[0].abs().max() > 0


def test_samples_follow_the_mixed_probabilities(on: Target) -> None:
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


def test_the_start_state_is_data(on: Target) -> None:
    rssm, args = make(2, 2)
    deter = args[3].requires_grad_()
    outputs = rssm_observe(*args[:3], deter, *args[4:], rssm.observe_weights())
    assert torch.autograd.grad(outputs[0].sum(), deter, allow_unused=True) == (None,)


# Contracts


def test_gates_are_kept_in_bfloat16_where_products_are(native: Target) -> None:
    """By CUDA's kernels alone: the others refuse it."""
    case = CASES["rssm_observe"]
    args = convert(case.args(dict(T=2, B=3) | ODD | dict(classes=8), torch.float32), device=native.device)
    op, inputs = raw_call(case, args)
    for compact, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        inputs |= {"save": True, "compact": compact, "bf16": True}
        if native.backend != "cuda" and compact:
            with pytest.raises(RuntimeError, match="only CUDA's kernels save gates in bfloat16"):
                op(*inputs.values())
        else:
            *_, gates, _ = op(*inputs.values())
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


@pytest.mark.parametrize(("T", "B"), [(1, 1), (5, 37)])
def test_a_cluster_is_as_near_as_tiles(native: Target, T: int, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.backend != "cuda":
        pytest.skip("only CUDA has clusters of blocks")
    monkeypatch.setattr(sys.modules["fastwm.ops.rssm_observe"], "CLUSTERS", True)
    test_contract.test_reduced_precision(
        native, replace(CASES["rssm_observe"], reduced_sizes=[dict(T=T, B=B, **SIZE1M)])
    )


@pytest.mark.parametrize("B", [16, 21])
def test_a_cluster_repeats_itself_bitwise(native: Target, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.backend != "cuda":
        pytest.skip("not a sequence for a cluster")
    args = convert(CASES["rssm_observe"].args(dict(T=4, B=B, **SIZE1M), torch.float32), device=native.device)
    results = []
    with torch.no_grad(), torch.autocast(native.device, torch.bfloat16):
        for cluster in (False, True, True):
            monkeypatch.setattr(sys.modules["fastwm.ops.rssm_observe"], "CLUSTERS", cluster)
            results.append(rssm_observe(*args))
    tiles, first, second = results
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    if native.device == "cpu" or torch.cuda.get_device_capability()[0] >= 9:
        assert not torch.equal(first[0], tiles[0])  # its sums have an order of their own: it did run


def test_bfloat16_of_a_start_that_lies_anywhere(native: Target) -> None:
    """Tensor cores read 16 bytes at once, where a caller's arrays begin there."""
    args = CASES["rssm_observe"].args(dict(T=3, B=4) | ODD | dict(classes=8), torch.float32)
    args = convert(args, device=native.device)
    with torch.autocast(native.device, torch.bfloat16):
        want = rssm_observe(*args)[0]
        got = rssm_observe(*args[:3], *lay_out(args[3:5], "offset"), *args[5:])[0]
    assert_close(got[0], want[0], atol=0.03, rtol=0)


@needs_cpu
def test_bfloat16_does_not_depend_on_threads_beyond_rounding() -> None:
    case = CASES["rssm_observe"]
    args = case.args(dict(T=9, B=40, block=128, hidden=128, stoch=32, classes=8, blocks=8), torch.float32)
    args = convert(case.settle(case, convert(args, torch.float64)), torch.float32)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for count in (1, 2, 3):
            with threads(count):
                results.append(run(case, args))
                assert_equal(run(case, args), results[-1])
    for other in results[1:]:
        assert_near(case, other, results[0], 1e-2)
