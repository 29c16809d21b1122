"""The fused LaProp step: every backend against the plain one, determinism, contracts. Values: test_optim.py."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastwm
from fastwm import _lib, ref
from fastwm.ops import laprop_step_
from fastwm.ops.laprop import _foreach
from fastwm.optim import LaProp

pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_native = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
DEFAULTS = dict(step=3, lr=1e-2, betas=(0.9, 0.999), eps=1e-20, agc=0.3, pmin=1e-3, warmup=10)
SHAPES: list[tuple[int, ...]] = [(), (3,), (0, 2), (5, 7), (16384,), (40_000,), (2, 131_073)]


def lists(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64, device: str = "cpu") -> Lists:
    """params, grads (every third one small enough not to be clipped), nu, mu."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes]

    params, grads, nu, mu = draw(), draw(), draw(), draw()
    return params, [0.1 * g if i % 3 == 0 else g for i, g in enumerate(grads)], [n.square() for n in nu], mu


def stepped(step, state: Lists, /, **changed: object) -> Lists:  # type: ignore[no-untyped-def]
    state = deepcopy(state)
    step(*state, **(DEFAULTS | changed))
    return state


def test_values_by_hand() -> None:
    """Two numbers by hand: |g| = 2 against 0.3 * 5 clips to 0.75 g; then nu, mu and p follow."""
    p, g, n, m = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.1])
    with fastwm.backend("ref"):
        laprop_step_([p], [g], [n], [m], **DEFAULTS)
    nu = 0.999 * 0.5 + 0.001 * 1.5**2
    mu = 0.9 * 0.1 + 0.1 * 1.5 / (nu / (1 - 0.999**4)) ** 0.5
    assert_close(n, torch.tensor([0.0, nu]))
    assert_close(m, torch.tensor([0.0, mu]))
    assert_close(p, torch.tensor([3.0, 4 - 1e-2 * 0.3 * mu / (1 - 0.9**4)]))
    assert g.tolist() == [0, 2]


@pytest.mark.parametrize(
    "changed", [{}, {"agc": 0.0}, {"warmup": 0}, {"step": 0}, {"step": 5000}, {"eps": 0.1}], ids=str
)
@pytest.mark.parametrize("step", [laprop_step_, _foreach], ids=["fused", "foreach"])
def test_equals_reference(step, changed: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    state = lists(SHAPES)
    assert_close(stepped(step, state, **changed), stepped(ref.laprop_step_, state, **changed), atol=1e-12, rtol=1e-10)


def test_each_tensor_is_clipped_by_its_own_norm_whatever_the_others() -> None:
    """Also where tensors share a wave, and where one takes many chunks."""
    state = lists(SHAPES)
    together = stepped(laprop_step_, state)
    for i in range(len(SHAPES)):
        alone = stepped(laprop_step_, tuple([xs[i]] for xs in state))  # type: ignore[arg-type]
        assert all(torch.equal(one[0], all_[i]) for one, all_ in zip(alone, together))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_gradient_spoils_its_tensor_alone(value: float) -> None:
    params, grads, nu, mu = lists([(4,), (4,)])
    grads[0][1] = value
    laprop_step_(params, grads, nu, mu, **DEFAULTS)  # type: ignore[arg-type]
    assert params[0][1].isnan()
    assert params[1].isfinite().all()


@pytest.mark.parametrize("part", [0, 1], ids=["parameter", "gradient"])
def test_nan_reaches_all_that_clipping_by_norm_joins(part: int) -> None:
    state = lists([(4,), (4,)])
    state[part][0][1] = float("nan")
    want = stepped(ref.laprop_step_, state)
    assert want[0][0].isnan().all()
    assert_close(stepped(laprop_step_, state), want, equal_nan=True)


def test_step_and_rate_may_be_tensors() -> None:
    state = lists(SHAPES[:4], torch.float32)
    tensors = dict(step=torch.tensor(3), lr=torch.tensor(1e-2))
    want = stepped(laprop_step_, state)
    for step in (laprop_step_, _foreach, ref.laprop_step_):
        assert_close(stepped(step, state, **tensors), want, atol=1e-6, rtol=1e-5)
    assert tensors["step"].item() == 3


def test_saved_for_backward_notices_the_step() -> None:
    """As after torch's own in-place operators: a gradient through overwritten parameters is an error."""
    p = torch.nn.Parameter(torch.ones(3))
    y = p.square().sum()
    laprop_step_([p], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], **DEFAULTS)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, g, n, m: (p, g[:1], n, m), r"one length, got \[2, 1, 2, 2\]"),
        (lambda p, g, n, m: (p, [g[0], g[1][:1]], n, m), r"nu and mu \[2, 2\], got \[\[1, 2\]"),
    ],
)
def test_wrong_arguments_are_explained(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        laprop_step_(*change(*lists([(3,), (2, 2)])), **DEFAULTS)


def optimizers(capturable: bool, device: str = "cpu") -> tuple[torch.nn.Parameter, LaProp]:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], device=device))
    return p, LaProp([p], lr=0.1, warmup=2, capturable=capturable)


def test_capturable_takes_the_same_steps() -> None:
    (p, plain), (q, capturable) = optimizers(False), optimizers(True)
    for i in range(4):
        for x, optimizer in ((p, plain), (q, capturable)):
            x.grad = torch.tensor([0.3, -0.1, 0.2]) * (i + 1)
            optimizer.step()
    assert_close(p, q)
    assert capturable.param_groups[0]["step"].item() == plain.param_groups[0]["step"] == 4


def test_state_of_before_capturable_loads() -> None:
    p, optimizer = optimizers(False)
    p.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state["state"][0]) == {"nu", "mu"}
    del state["param_groups"][0]["capturable"]
    _, twin = optimizers(False)
    twin.load_state_dict(state)
    assert twin.param_groups[0]["capturable"] is False
    assert twin.param_groups[0]["step"] == 1


def test_a_tensor_rate_needs_capturable() -> None:
    with pytest.raises(ValueError, match="capturable"):
        LaProp([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))


@pytest.mark.gpu
def test_cuda_equals_reference() -> None:
    state = lists([*SHAPES, *[(10,)] * 600], device="cuda")  # more tensors than one launch takes
    assert_close(stepped(laprop_step_, state), stepped(ref.laprop_step_, state), atol=1e-12, rtol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_saved_state_continues_on_another_device(source: str, target: str, capturable: bool) -> None:
    (p, saved), (q, loaded) = optimizers(capturable, source), optimizers(True, target)
    for i in range(4):
        if i == 2:
            q.data.copy_(p)
            loaded.load_state_dict(saved.state_dict())
        for x, optimizer in ((p, saved), (q, loaded))[: 1 + i // 2]:
            x.grad = torch.tensor([0.3, -0.1, 0.2], device=x.device) * (i + 1)
            optimizer.step()
    assert_close(p.cpu(), q.cpu())
    step = loaded.param_groups[0]["step"]
    assert step == 4 and (step.device.type == target if capturable else isinstance(step, int))


@pytest.mark.gpu
def test_captures_into_a_cuda_graph() -> None:
    p = torch.nn.Parameter(torch.ones(300, device="cuda"))
    q = torch.nn.Parameter(p.detach().clone())
    rate = torch.tensor(0.1, device="cuda")
    captured = LaProp([p], lr=rate, warmup=2, capturable=True)
    plain = LaProp([q], lr=0.1, warmup=2)
    for x, optimizer in ((p, captured), (q, plain)):
        x.grad = torch.linspace(-1, 1, 300, device="cuda")
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for i in range(3):
        rate.fill_(0.1 / (i + 1))
        graph.replay()
        plain.param_groups[0]["lr"] = 0.1 / (i + 1)
        plain.step()
    assert_close(p, q)
