"""What every operator promises, over the registry of cases in tests/cases: a test is one property.

A case that lacks a property says so, and why, in `without`. What only one operator promises is in its own file.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

import fastwm
from fastwm import _lib
from tests.backends import CHOSEN, Target, threads
from tests.cases import CASES, Case
from tests.cases.case import LAYOUTS, convert, lay_out
from tests.cases.run import (
    assert_equal,
    assert_near,
    cotangents,
    exact,
    needing,
    raw_calls,
    reference,
    rounding,
    run,
    tensors,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SCHEMA = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = (*SCHEMA, "test_aot_dispatch_dynamic")
Test = Callable[..., None]


def every_case(test: Test) -> Test:
    """Runs a property's test for every case that has it; of a backend of kernels, where there is a kernel."""
    name = test.__name__.removeprefix("test_")
    cases = [case for case in CASES.values() if case.has(name) and not (CHOSEN and not CHOSEN.has_kernel(case.kernel))]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)(test)


def every_operator(test: Test) -> Test:
    """The same for what a case's other forms do not change: the way from the public function to the raw operator."""
    test = every_case(test)
    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    mark.args[1][:] = [case for case in mark.args[1] if not case.alike]
    return test


def fits(target: Target, args: Any) -> bool:
    """Whether the size is one that this backend ends with in time."""
    most = {("triton", "cpu"): 3000, ("cuda", "cpu"): 60_000}.get(target, 10**9)
    return sum(x.numel() for x in tensors(args)) <= most


def small(case: Case, target: Target, dtype: torch.dtype = torch.float64) -> Any:
    return convert(case.args(dtype=dtype), device=target.device)


def function(case: Case, args: Any) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """The operator as a function of its tensors alone, and these."""
    leaves, spec = pytree.tree_flatten(args)
    where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]

    def call(*given: Tensor) -> list[Tensor]:
        full = list(leaves)
        for i, x in zip(where, given, strict=True):
            full[i] = x
        return tensors(case.operator(*pytree.tree_unflatten(full, spec)))

    return call, [leaves[i] for i in where]


# Values


@every_case
def test_equals_reference(native: Target, case: Case) -> None:
    """In float64: outputs, and the gradients of all arguments."""
    for sizes in case.sizes:
        args = convert(case.args(sizes), device=native.device)
        if fits(native, args) or sizes is case.sizes[0]:
            assert_near(case, run(case, args), reference(case, args), case.tolerance, sizes)


@every_case
def test_any_layout(native: Target, case: Case) -> None:
    """Arguments that are transposed, parts of something wider, not aligned, or expanded; results are contiguous."""
    for layout in LAYOUTS:
        args = lay_out(small(case, native), layout)
        ours = run(case, args)
        assert_near(case, ours, reference(case, args), case.tolerance, layout)
        assert all(x.is_contiguous() for name, x in ours.items() if name == "output 0")


@every_case
def test_any_sizes(cpu: Target, case: Case) -> None:
    """Random ones, 0 and 1 among them, in random layouts."""
    rng = random.Random(case.name)
    for seed in range(8):
        sizes = case.random_sizes(rng)
        args = lay_out(case.args(sizes, seed=seed), lambda: rng.choice(["as made", *LAYOUTS[:3]]))
        assert_near(case, run(case, args), reference(case, args), case.tolerance, sizes)


@every_case
def test_every_instruction_set(isa: str, case: Case) -> None:
    for dtype in case.precision:
        args = case.args(case.wide, dtype)
        assert_near(case, run(case, args), exact(case, args), about=f"{isa} {dtype}")


@every_operator
def test_gradients_of_one_output(native: Target, case: Case) -> None:
    args = small(case, native)
    outputs = [y for y in tensors(case.operator(*args)) if y.requires_grad]
    for i in range(len(outputs) if len(outputs) > 1 else 0):
        assert_near(case, run(case, args, i), reference(case, args, i), case.tolerance, f"output {i}")


# Precision


def _errors(x: Tensor, theirs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    return (x.double() - truth).abs(), (theirs.double() - truth).abs()


@every_case
def test_reduced_precision(native: Target, case: Case) -> None:
    """In bfloat16 the error is at most twice PyTorch's, for values and gradients, and dtypes are PyTorch's.

    Under autocast only products are bfloat16 (see "mixed precision" in docs/traps.md); results are float32.
    """
    autocast = case.reduced == "autocast"
    for sizes in case.reduced_sizes:
        made = case.args(sizes, torch.float32 if autocast else torch.bfloat16)
        if not fits(native, made):
            continue
        if case.settle:
            made = convert(case.settle(case, convert(made, torch.float64)), torch.float32)
        args, truths = convert(made, device=native.device), exact(case, made)
        with torch.autocast(native.device, torch.bfloat16, enabled=autocast):
            ours, theirs = run(case, args), reference(case, args)
        for name, truth in truths.items():
            x, y, about = ours[name], theirs[name], f"{case.name} {sizes} {name}"
            truth = truth.to(x.device).double()
            error, allowed = _errors(x, y, truth)
            if autocast:
                assert x.dtype in (torch.float32, torch.int64), about
                assert error.norm() <= 2 * allowed.norm() + 1e-5 * truth.norm() + 1e-6, about
                assert error.norm() <= 0.05 * truth.norm() + 1e-4, about
            else:
                assert x.dtype == y.dtype, about
                assert (error <= 2 * allowed.max() + rounding(x) * truth.abs().max()).all(), about
                assert error.norm() <= 0.01 * truth.norm() + 1e-6, about


@every_operator
def test_other_dtypes(case: Case) -> None:
    """float16 is served by the reference."""
    args = case.args(dtype=torch.float16)
    ours, want = run(case, args), reference(case, args)
    for name, x in want.items():
        assert x.dtype == ours[name].dtype and torch.equal(x, ours[name]), name


@every_operator
def test_autocast(on: Target, case: Case) -> None:
    """bfloat16 arguments under autocast: the result's dtype, and the precision of float32 inside."""
    args = small(case, on, torch.bfloat16)
    with torch.autocast(on.device, torch.bfloat16):
        ours = tensors(case.operator(*args))[0]
    assert ours.dtype in (case.autocast_dtype, torch.int32)
    want = exact(case, args)["output 0"]
    assert_close(ours.double(), want.double(), atol=2e-2, rtol=2e-2)


# Determinism


@every_case
def test_repeats_bitwise(native: Target, case: Case) -> None:
    args = convert(case.args(case.wide, torch.float32), device=native.device)
    args = args if fits(native, args) else small(case, native, torch.float32)
    with threads(1 if native.device == "cuda" or native.slow else 2):
        first = run(case, args)
        for _ in range(2 if native.slow else 20):
            assert_equal(run(case, args), first)


@every_case
def test_threads(cpu: Target, case: Case) -> None:
    """Their number changes nothing; or nothing but the order of sums, which repeats for the same number."""
    for sizes in case.shared:
        args = case.args(sizes, torch.float32 if case.threads == "equal" else torch.float64)
        results = []
        for count in (1, 2, 2, 3):
            with threads(count):
                results.append(run(case, args))
        assert_equal(results[1], results[2], sizes)
        for other in results[1:]:
            if case.threads == "equal":
                assert_equal(other, results[0], sizes)
        if case.threads == "rounding":
            want = reference(case, args)
            for ours in (results[0], *results[2:]):
                assert_near(case, ours, want, 1e-10, sizes)


# Gradients


@every_case
def test_gradcheck(on: Target, case: Case) -> None:
    """The derivatives are those of finite differences; where samples are not, the other outputs are checked."""
    args = small(case, on)
    inputs = tensors(args)

    def smooth(*given: Tensor) -> list[Tensor]:
        outputs = case.smooth(_outputs(case, args, given))
        return [y for y in tensors(outputs) if y.requires_grad]

    many = sum(x.numel() for x in inputs if x.requires_grad) > 60
    assert torch.autograd.gradcheck(smooth, inputs, fast_mode=many or on.slow)


def _outputs(case: Case, args: Any, given: tuple[Tensor, ...]) -> Any:
    leaves, spec = pytree.tree_flatten(args)
    rest = iter(given)
    return case.operator(*pytree.tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec))


@every_operator
def test_second_derivative_is_refused(native: Target, case: Case) -> None:
    args = small(case, native)
    inputs = needing(args)
    outputs = [y for y in tensors(case.operator(*args)) if y.requires_grad]
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs], create_graph=True,
                                allow_unused=True)  # fmt: skip
    with pytest.raises(RuntimeError, match="backend\\('ref'\\)"):
        sum(g.square().sum() for g in grads if g is not None and g.requires_grad).backward()


@every_case
def test_reference_is_differentiable_twice(case: Case) -> None:
    call, leaves = function(case, case.args())
    with fastwm.backend("ref"):
        assert torch.autograd.gradgradcheck(lambda *x: [y for y in call(*x) if y.requires_grad], leaves, fast_mode=True)


@every_operator
def test_only_what_needs_a_gradient(native: Target, case: Case) -> None:
    """gets one; and without any, nothing is kept."""
    args = small(case, native)
    inputs = needing(args)
    outputs = [y for y in tensors(case.operator(*args)) if y.requires_grad]
    grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs], allow_unused=True)
    *_, last = (x for x, grad in zip(inputs, grads) if grad is not None)
    for x in inputs:
        x.requires_grad_(x is last)
    outputs = [y for y in tensors(case.operator(*args)) if y.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    assert last.grad is not None and all(x.grad is None for x in inputs if x is not last)
    with torch.no_grad():
        assert all(y.grad_fn is None for y in tensors(case.operator(*args)))


@every_operator
def test_nothing_is_saved_without_gradients(native: Target, case: Case) -> None:
    """The raw operator then returns the public results alone, and the same ones."""
    args = small(case, native)
    want = tensors(case.operator(*args))
    with torch.no_grad():
        got = tensors(case.operator(*args))
    assert all(map(torch.equal, got, want))
    for op, given, outputs in raw_calls(case, args, grad=False):
        names = [argument.name for argument in op._schema.arguments]
        if "save" not in names:
            continue
        assert not torch.as_tensor(given[names.index("save")]).any()
        kept = sum(y.numel() for y in outputs)
        saving = [y for other, _, y in raw_calls(case, args) if other is op]
        assert not saving or kept < sum(y.numel() for y in saving[0]) or kept == 0


# Contracts of PyTorch


@every_operator
def test_opcheck(native: Target, case: Case) -> None:
    """Schema, fake, autograd registration and tracing of every raw operator that the case calls."""
    args = small(case, native, torch.float32)
    checks = [(raw_calls(case, lay_out(args, "reversed")), TRACED), (raw_calls(case, args, grad=False), SCHEMA)]
    if case.reduced == "inputs" and not native.slow:
        checks.append((raw_calls(case, small(case, native, torch.bfloat16)), SCHEMA))
    assert any(calls for calls, _ in checks)
    for calls, tests in checks:
        for op, given, _ in calls:
            if not hasattr(getattr(torch.ops, op.namespace), f"{op._opname}_backward"):  # it has no derivative
                given = pytree.tree_map_only(Tensor, Tensor.detach, given)
            torch.library.opcheck(op, given, test_utils=tests)


@every_operator
def test_compiles(on: Target, case: Case) -> None:
    """In one graph, the kernels' of symbolic shapes. The reference's loops over time are traced for one form alone."""
    if on.backend == "ref" and case is not next(other for other in CASES.values() if other.operator == case.operator):
        pytest.skip("its loop is traced for another form")
    torch._dynamo.reset()
    call, leaves = function(case, small(case, on))
    dynamic = on.backend != "ref"  # whose loops over time are traced step by step
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got, want = compiled(*leaves), call(*leaves)
    assert_close(got, want)
    inputs = [x for x in leaves if x.requires_grad]
    pairs = [[y for y in outputs if y.requires_grad] for outputs in (got, want)]
    if pairs[0]:
        grads = (torch.autograd.grad(y, inputs, cotangents(y), materialize_grads=True) for y in pairs)
        assert_close(*grads)


@every_operator
def test_vmap(native: Target, case: Case) -> None:
    """Over all tensors, and over the first alone; or an error that says what to do."""
    entries = [small_of(case, native, seed) for seed in range(3)]
    call, _ = function(case, entries[0])
    every = [tensors(args) for args in entries]
    stacked = [torch.stack(x) for x in zip(*every, strict=True)]
    if not stacked:
        return
    if case.batched:
        with pytest.raises(RuntimeError, match="takes a batch"):
            torch.vmap(call)(*(x.detach() for x in stacked))
        return
    assert_close(torch.vmap(call)(*stacked), [torch.stack(y) for y in zip(*(call(*x) for x in every))])
    first, *rest = every[0]
    if first.dim() > 1:
        moved = torch.stack([x[0] for x in every], 1)
        got = torch.vmap(call, in_dims=(1, *(None for _ in rest)))(moved, *rest)
        assert_close(got, [torch.stack(y) for y in zip(*(call(x[0], *rest) for x in every))])


def small_of(case: Case, target: Target, seed: int) -> Any:
    return convert(case.args(seed=seed), device=target.device)


@every_operator
def test_functional_gradients(native: Target, case: Case) -> None:
    """torch.func.grad, and each entry's own under vmap."""
    entries = [small_of(case, native, seed) for seed in range(1 if case.batched else 3)]
    call, leaves = function(case, entries[0])
    which = tuple(i for i, x in enumerate(leaves) if x.requires_grad)

    def loss(*given: Tensor) -> Tensor:
        outputs = [y for y in call(*given) if y.is_floating_point()]
        return sum((y * weight).sum() for y, weight in zip(outputs, weights))

    outputs = [y for y in call(*leaves) if y.is_floating_point()]
    weights = [weight if y.requires_grad else torch.zeros_like(y) for y, weight in zip(outputs, cotangents(outputs))]
    every = [[x.detach() for x in tensors(args)] for args in entries]
    singly = [torch.func.grad(loss, which)(*x) for x in every]
    for args, ours in zip(entries, singly):
        mine = [x.detach().requires_grad_(x.requires_grad) for x in tensors(args)]
        want = torch.autograd.grad(loss(*mine), [mine[i] for i in which], materialize_grads=True)
        assert_close(ours, want)
    if not case.batched:
        mapped = torch.vmap(torch.func.grad(loss, which))(*(torch.stack(x) for x in zip(*every)))
        assert_close(mapped, tuple(torch.stack(x) for x in zip(*singly)))


@pytest.mark.gpu
@every_operator
def test_captures_into_a_cuda_graph(case: Case) -> None:
    args = convert(case.args(dtype=torch.float32), device="cuda")
    case.operator(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = case.operator(*args)
    with torch.no_grad():
        tensors(args)[0].add_(1)
        graph.replay()
        assert_close(tensors(captured), tensors(case.operator(*args)))


def test_every_library_has_the_same_schemas(native: Target) -> None:
    """As Triton has those operators that it has."""

    def schemas(library: str) -> dict[str, str]:
        found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(f"{library}::")]
        return {schema.name.split("::")[1]: str(schema).replace(f"{library}::", "") for schema in found}

    ours, theirs = schemas("fastwm"), schemas(native.library)
    if not (_lib.has_cpu and theirs):
        pytest.skip("needs both libraries")
    assert theirs == {name: ours[name] for name in theirs}


# Bad input


@every_case
def test_wrong_arguments(cpu: Target, case: Case) -> None:
    """A clear ValueError, on every backend: it is raised before one is chosen."""
    for change, message in case.wrong:
        args = change(*case.args())
        with pytest.raises(ValueError, match=message):
            case.operator(*args)
        with fastwm.backend("ref"), pytest.raises(ValueError, match=message):
            case.operator(*args)


@every_operator
def test_wrong_raw_arguments(cpu: Target, case: Case) -> None:
    """A direct call of the raw operator with a wrong tensor is an error, and not a crash."""
    calls = raw_calls(case, case.args())
    assert calls
    for op, args, _ in calls:
        leaves, spec = pytree.tree_flatten(pytree.tree_map_only(Tensor, Tensor.detach, args))
        where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.numel()]
        for i in where:
            x = leaves[i]
            shapes = [x[..., :-1], x[:-1]] if x.dim() else [x[None]]  # an operator may take one of them, as a width
            refused = []
            for bad in (x.to(torch.float16), *(shapes if len(where) > 1 else [])):
                error = _error(op, pytree.tree_unflatten([*leaves[:i], bad, *leaves[i + 1 :]], spec))
                assert error is None or "fastwm" in str(error)
                refused += [] if error is None else [list(bad.shape)]
            assert len(refused) >= min(2, len(where)), f"{op} takes argument {i}: only {refused} were refused"


def _error(op: Any, args: Any) -> RuntimeError | None:
    try:
        op(*args)
    except RuntimeError as error:
        return error
    return None
