"""The MLP over many rows: every backend against the reference, values and all gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import fastwm
from fastwm import _lib
from fastwm.ops import DenseWeights, LayerWeights, LinearWeights, MLPWeights, mlp
from fastwm.ops.mlp import by_layers, weight_tensors

pytestmark = [pytest.mark.usefixtures("poisoned_memory")]
needs_cpu = pytest.mark.skipif(not _lib.has_cpu, reason="not built")

Call = tuple[Tensor, MLPWeights, Tensor | None]


def make(
    batch: tuple[int, ...] = (37,), D: int = 7, latents: tuple[int, int] | None = (4, 5), U: int = 19, O: int = 11,
    layers: int = 3, dtype: torch.dtype = torch.float64, kind: str = "rms",
) -> Call:  # fmt: skip
    """Input, weights, one-hot latents of which one is no one-hot. `kind`: rms, or another norm and the activation."""
    torch.manual_seed(0)
    x, onehot, inputs = torch.randn(*batch, D), None, D
    if latents:
        S, C = latents
        onehot = F.one_hot(torch.randint(C, (*batch, S)), C).flatten(-2).float()
        onehot.view(-1, S * C)[:1] = torch.randn(S * C)
        inputs += S * C
    norm, _, activation = kind.partition(" ")
    dense: list[Any] = []
    for _ in range(layers):
        weight, bias, scale, shift = torch.randn(U, inputs) / 3, torch.randn(U), 1 + torch.rand(U), torch.randn(U)
        if norm == "rms":
            dense.append(DenseWeights(weight, bias, scale))
        else:
            dense.append(LayerWeights(weight, bias, *([scale, shift] if norm == "layer_norm" else [])))
        inputs = U
    weights = MLPWeights(tuple(dense), LinearWeights(torch.randn(O, U), torch.randn(O)), activation or "silu")
    return convert((x, weights, onehot), dtype)


def convert(call: Call, dtype: torch.dtype) -> Call:
    def to(x: Tensor) -> Tensor:
        return x.to(dtype).requires_grad_()

    x, w, onehot = call
    layers: Any = tuple(type(layer)(*(part if part is None else to(part) for part in layer)) for layer in w.layers)
    return (
        to(x),
        MLPWeights(layers, LinearWeights(*map(to, w.out)), w.activation),
        None if onehot is None else to(onehot),
    )


def tensors(call: Call) -> Iterator[Tensor]:
    x, w, onehot = call
    yield x
    if onehot is not None:
        yield onehot
    for layer in (*w.layers, w.out):
        yield from (part for part in layer if part is not None)


def run(call: Call, backend: str) -> list[Tensor]:
    """The output and the gradients of everything."""
    with fastwm.backend(backend):
        y = mlp(*call)
        weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
        return [
            y,
            *torch.autograd.grad((y.float() if y.dtype == torch.bfloat16 else y).mul(weight).sum(), tensors(call)),
        ]


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"latents": None},
    {"batch": ()},
    {"batch": (0,)},
    {"batch": (3, 0, 2)},
    {"batch": (2, 3, 5), "O": 1},
    {"batch": (1100,), "U": 64, "D": 40, "O": 255},
    {"batch": (257,), "U": 33, "D": 1, "layers": 2},
    {"kind": "layer_norm elu"},
    {"kind": "layer_norm silu", "layers": 1},
    {"kind": "layer_norm relu", "batch": (530,), "U": 40},
    {"kind": "none elu", "latents": None},
    {"kind": "none silu", "batch": (0,)},
    {"kind": "none relu", "batch": (257,), "layers": 2, "O": 1},
]


@needs_cpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_by_layer_equals_reference(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves a GPU."""
    call = make(**shape)
    exact = run(call, "ref")
    monkeypatch.setitem(globals(), "mlp", by_layers)
    assert_close(run(call, "cpu"), exact, atol=1e-10, rtol=1e-10)


@pytest.mark.gpu
def test_equals_reference_on_a_gpu() -> None:
    call = make(batch=(257,))
    on_gpu = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.detach().cuda().requires_grad_(), call)
    assert_close([x.cpu() for x in run(on_gpu, "cuda")], run(call, "ref"), atol=1e-10, rtol=1e-10)


@needs_cpu
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_values_and_gradients_equal_the_reference(sizes: dict[str, Any]) -> None:
    call = make(**sizes)
    ours, theirs = run(call, "cpu"), run(call, "ref")
    assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@needs_cpu
@pytest.mark.parametrize("kind", ["rms", "layer_norm elu", "none silu"])
def test_gradcheck(kind: str) -> None:
    call = make((3,), D=2, latents=(1, 3), U=4, O=2, layers=2, kind=kind)
    x, w, onehot = call

    def function(*_: Tensor) -> Tensor:
        return mlp(x, w, onehot)

    assert torch.autograd.gradcheck(function, tuple(tensors(call)))


@pytest.mark.parametrize("kind", ["rms", "layer_norm elu", "none relu"])
@pytest.mark.parametrize("isa", _lib.host.isa_levels() if _lib.host else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set(isa: str, dtype: torch.dtype, kind: str) -> None:
    assert _lib.host is not None
    exact = run(make((300,), D=70, U=96, kind=kind), "ref")
    before = _lib.host.isa()
    _lib.host.set_isa(isa)
    try:
        ours = run(make((300,), D=70, U=96, dtype=dtype, kind=kind), "cpu")
    finally:
        _lib.host.set_isa(before)
    bound = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    for x, truth in zip(ours, exact):
        assert (x - truth).norm() <= bound * truth.norm()


@needs_cpu
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_only_what_is_asked_for_gets_a_gradient(backend: str) -> None:
    x, w, onehot = make()
    with fastwm.backend(backend):
        y = mlp(x.detach(), w, onehot.detach() if onehot is not None else None)
        y.square().sum().backward()
        assert x.grad is None and w.layers[0].weight.grad is not None
        with torch.no_grad():
            assert not mlp(x, w, onehot).requires_grad
        assert_close(mlp(x, w, onehot), mlp(torch.cat([x, onehot], -1), w) if onehot is not None else y)


@needs_cpu
@pytest.mark.parametrize("kind", ["rms", "layer_norm silu"])
def test_fixed_weights_get_no_gradient_and_the_input_the_same(kind: str) -> None:
    x, w, onehot = make((1300,), kind=kind)
    assert onehot is not None
    fixed: Any = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, w)
    results = []
    for weights in (w, fixed):
        y = mlp(x, weights, onehot)
        results.append(torch.autograd.grad(y.square().sum(), (x, onehot)))
    assert all(map(torch.equal, *results))
    _, pre = torch.ops.fastwm.mlp.default(*(args := operands((x, fixed, onehot))), 1, 1e-4, True, False)
    assert torch.ops.fastwm.mlp_backward.default(
        torch.ones(1300, 11).double(), pre, *args, 1, 1e-4, True, False, False
    )[2].shape == (0,)


def operands(call: Call) -> list[Tensor]:
    """As the operator takes them."""
    x, w, onehot = call
    assert onehot is not None
    return [part.detach() for part in (x, onehot, *weight_tensors(w))]


@needs_cpu
@pytest.mark.parametrize("kind", ["rms", "layer_norm elu"])
def test_threads_and_repeats_change_nothing(kind: str) -> None:
    call = make((1300,), D=40, U=48, O=33, dtype=torch.float32, kind=kind)
    assert_threads_change_nothing(call)


@needs_cpu
def test_threads_share_large_gradients() -> None:
    """More than a core keeps for itself, over several chunks of rows."""
    call = make((600,), D=800, U=256, O=33)
    ours = assert_threads_change_nothing(call)
    assert_close(ours, run(call, "ref"), atol=1e-9, rtol=1e-9)


def assert_threads_change_nothing(call: Call) -> tuple[Tensor, ...]:
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(run(call, "cpu"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    return results[0]


@needs_cpu
def test_any_strides() -> None:
    x, w, onehot = make((4, 6))
    assert onehot is not None
    turned = (x.transpose(0, 1).contiguous().transpose(0, 1), w, onehot.transpose(0, 1).contiguous().transpose(0, 1))
    assert_close(mlp(*turned), mlp(x, w, onehot))
    wide = MLPWeights(
        tuple(DenseWeights(layer.weight.T.contiguous().T, *layer[1:]) for layer in w.layers),
        LinearWeights(w.out.weight.T.contiguous().T, w.out.bias),
    )
    assert_close(mlp(x, wide, onehot), mlp(x, w, onehot))


@needs_cpu
@pytest.mark.parametrize("kind", ["rms", "layer_norm silu", "none silu"])
def test_opcheck_and_compile(kind: str) -> None:
    x, w, onehot = make(kind=kind)
    assert onehot is not None
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: mlp(a, w, b), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, onehot), mlp(x, w, onehot))
    args = [z.requires_grad_() for z in operands((x, w, onehot))]
    torch.library.opcheck(torch.ops.fastwm.mlp.default, (*args, 1, 1e-4, True, False))
    y, pre = torch.ops.fastwm.mlp.default(*args, 1, 1e-4, True, False)
    args = [arg.detach() for arg in args]
    backward = (torch.randn_like(y), pre.detach(), *args)
    torch.library.opcheck(torch.ops.fastwm.mlp_backward.default, (*backward, 1, 1e-4, True, True, False))
    for i, arg in enumerate(args):
        wrong = [*args[:i], arg[..., :-1], *args[i + 1 :]]
        with pytest.raises(RuntimeError, match="fastwm"):
            torch.ops.fastwm.mlp(*wrong, 1, 1e-4, True, False)
    with pytest.raises(RuntimeError, match="RMSNorm goes with SiLU|no such activation"):
        torch.ops.fastwm.mlp(*args, 2 if kind == "rms" else 4, 1e-4, True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, z: (x[:, :3], w, z), r"mlp.layers\[0\].weight"),
        (lambda x, w, z: (x, w, z.float()), "like x"),
        (lambda x, w, z: (x, w, z[:5]), "like x"),
        (lambda x, w, z: (x, w._replace(layers=()), z), "at least one layer"),
        (lambda x, w, z: (x, w._replace(layers=(LayerWeights(*w.layers[0]),)), z), "both scale and shift"),
        (lambda x, w, z: (x, w._replace(activation="elu"), z), "activation silu"),
        (lambda x, w, z: (x, w._replace(layers=(w.layers[0], *make(kind="none silu")[1].layers[1:])), z), "alike"),
        (lambda x, w, z: (x, make(kind="none elu")[1]._replace(activation="tanh"), z), "activation silu"),
        (
            lambda x, w, z: (
                x,
                make(kind="none elu")[1]._replace(
                    layers=(*make(kind="none elu")[1].layers[:2], make(kind="layer_norm elu")[1].layers[2])
                ),
                z,
            ),
            "alike",
        ),
        (lambda x, w, z: (x, w._replace(out=LinearWeights(w.out.weight[:, :2], w.out.bias)), z), "mlp.out.weight"),
        (lambda x, w, z: (x.to("meta"), w, z), "meta"),
    ],
)
def test_wrong_arguments_are_explained(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(*change(*make()))


@needs_cpu
@pytest.mark.parametrize("kind", ["rms", "layer_norm elu", "none silu"])
@pytest.mark.parametrize(
    ("rows", "U", "latents"),
    [(7, 19, (4, 5)), (37, 32, (32, 4)), (37, 32, (9, 15)), (1100, 64, (4, 5)), (1100, 64, None)],
)
def test_bfloat16_error_is_within_twice_pytorchs(rows: int, U: int, latents: tuple[int, int] | None, kind: str) -> None:
    """Short latents are part of the product, longer ones are gathered."""
    sizes: dict[str, Any] = {"batch": (rows,), "D": 64, "latents": latents, "U": U, "O": 45, "kind": kind}
    exact = run(make(**sizes), "ref")
    call = make(**sizes, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = run(call, "cpu"), run(call, "ref")
    for x, y, truth in zip(ours, theirs, exact):
        assert x.dtype == torch.float32
        assert (x.double() - truth).norm() <= 2 * (y.double() - truth).norm() + 1e-6
        assert (x.double() - truth).norm() <= 0.05 * truth.norm()
