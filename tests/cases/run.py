"""Calls of a case: results by name, their comparison, and what raw operators were called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastwm
from tests.backends import INTERPRETED
from tests.cases.case import Case, convert

Results = dict[str, Tensor]


def tensors(x: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]


def needing(args: Any) -> list[Tensor]:
    """The tensors that have a gradient."""
    return [x for x in tensors(args) if x.requires_grad]


def named(args: Any) -> dict[str, Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(args)
    return {pytree.keystr(path): x for path, x in leaves if isinstance(x, Tensor)}


def cotangents(outputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Random, and exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y) for y in outputs]


def run(case: Case, args: Any, only: int | None = None) -> Results:
    """All outputs, and the gradients of all arguments under random cotangents of all outputs, or of one."""
    leaves, spec = pytree.tree_flatten(args)
    leaves = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in leaves]
    args = pytree.tree_unflatten(leaves, spec)
    outputs = tensors(case.operator(*args))
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    smooth = [y for y in outputs if y.requires_grad]
    smooth = smooth if only is None else smooth[only : only + 1]
    inputs = {name: x for name, x in named(args).items() if x.requires_grad}
    if smooth and inputs:
        grads = torch.autograd.grad(smooth, list(inputs.values()), cotangents(smooth), materialize_grads=True)
        results |= {f"gradient of {name}": g for name, g in zip(inputs, grads)}
    return results


def reference(case: Case, args: Any, only: int | None = None) -> Results:
    with fastwm.backend("ref"):
        return run(case, args, only)


def exact(case: Case, args: Any) -> Results:
    """The reference in float64, of the same numbers."""
    return reference(case, convert(args, torch.float64))


def assert_near(case: Case, ours: Results, want: Results, tolerance: float | None = None, about: Any = "") -> None:
    """Within `tolerance`, or that of each result's dtype."""
    assert ours.keys() == want.keys()
    for name, truth in want.items():
        x = ours[name].double()
        truth = truth.double().to(x.device)
        assert x.shape == truth.shape, (about, name, x.shape, truth.shape)
        if not x.numel():
            continue
        allowed = case.precision.get(ours[name].dtype, 0.0) if tolerance is None else tolerance
        size = truth.abs()
        scale = {"element": 1 + size, "tensor": size.max().clamp(min=1), "relative": size}[case.close]
        error = (x - truth).abs() / scale.clamp(min=1e-300)
        same = (x == truth) | (x.isnan() & truth.isnan())
        worst = error.masked_fill(same, 0).max().item()
        assert worst <= allowed, f"{case.name} {about}: {name} {list(x.shape)} is off by {worst:.2e} > {allowed:.0e}"


def assert_equal(ours: Results, want: Results, about: Any = "") -> None:
    for name, x in want.items():
        assert torch.equal(ours[name], x), f"{about}: {name} differs"


def rounding(x: Tensor) -> float:
    """Relative error that a result may have beside that of PyTorch's: Triton's interpreter truncates to bfloat16."""
    return 2**-7 if INTERPRETED and x.dtype == torch.bfloat16 else 4e-6


class Recorder(TorchDispatchMode):
    """Notes the raw operators that are called, with their arguments and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.namespace.startswith("fastwm"):
            return func(*args, **(kwargs or {}))
        noted = pytree.tree_map_only(Tensor, _copy, args)
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((func, noted, tensors(outputs)))
        return outputs


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def raw_calls(case: Case, args: Any, grad: bool = True) -> list[tuple[Any, tuple[Any, ...], list[Tensor]]]:
    """The calls of a case's raw operator, forward and backward; parts that are operators have cases of their own."""
    with Recorder() as recorder, torch.set_grad_enabled(grad):
        if grad:
            run(case, args)
        else:
            case.operator(*pytree.tree_map_only(Tensor, Tensor.detach, args))
    return [call for call in recorder.calls if call[0]._opname.removesuffix("_backward") == case.kernel]


def raw_call(case: Case, args: Any) -> tuple[Any, dict[str, Any]]:
    """The raw operator of a case, and its arguments by name."""
    (op, given, _), *_ = raw_calls(case, args, grad=False)
    return op, {argument.name: x for argument, x in zip(op._schema.arguments, given, strict=True)}
