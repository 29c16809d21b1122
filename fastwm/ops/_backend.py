"""Which backend serves a call, and how an operator is registered: everything that operators share."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from fastwm import _lib

if _lib.has_triton:
    import fastwm.triton  # noqa: F401  (defines the operators of fastwm_triton)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
KERNEL_DTYPES = (torch.float32, torch.float64)  # of whole sequences


def _serves(available: bool, library: str, *devices: str) -> dict[tuple[str, torch.dtype], str]:
    return {(device, dtype): library for device in devices for dtype in _DTYPES} if available else {}


_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# backend -> (device, dtype) -> operator library; what is not listed is plain PyTorch
_SERVES = {
    "cpu": _serves(_lib.has_cpu, "fastwm", "cpu"),
    "cuda": _serves(_lib.has_cuda, "fastwm", "cuda") | _serves(_lib.has_emulator, "fastwm_emulated", "cpu"),
    "triton": _serves(_lib.has_triton, "fastwm_triton", "cuda", *(["cpu"] if _INTERPRETED else [])),
    "ref": {},
}
_FASTEST = _serves(_lib.has_triton, "fastwm_triton", "cuda") | _SERVES["cuda"] | _SERVES["cpu"]
_LIBRARIES = ("fastwm", "fastwm_triton", "fastwm_emulated")


def _known(name: str | None) -> str | None:
    if name is not None and name not in _SERVES:
        raise ValueError(f"unknown backend '{name}'; the backends are {', '.join(_SERVES)}")
    return name


class _Forced(ModuleType):
    """The backends that the `with` blocks around a call force, the innermost last; each thread and task has its own.

    torch.compile cannot trace a ContextVar. It reads, guards and writes an attribute of a module.
    """

    _names: ContextVar[tuple[str | None, ...]] = ContextVar(
        "fastwm.backend", default=(_known(os.environ.get("FASTWM_BACKEND") or None),)
    )

    @property
    def names(self) -> tuple[str | None, ...]:
        return self._names.get()

    @names.setter
    def names(self, names: tuple[str | None, ...]) -> None:
        self._names.set(names)


_forced = _Forced("fastwm.backend")


class backend:
    """Forces one backend inside a `with` block: `cpu`, `cuda`, `triton` or `ref`.

    Without it (and without the environment variable `FASTWM_BACKEND`) each call takes the fastest backend for
    its device and dtype. `ref`, plain PyTorch, serves every device and dtype. The block counts for its own thread
    or asyncio task, and for tasks started inside it; threads start without it.

    Raises:
        ValueError: for an unknown name; in an operator, where the forced backend cannot serve the tensors.
    """

    def __init__(self, name: str) -> None:
        self.name = _known(name)

    def __enter__(self) -> None:
        _forced.names = (*_forced.names, self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _forced.names = _forced.names[:-1]


def forced_backend() -> str | None:
    """The backend that is forced here; None lets each call take the fastest."""
    return _forced.names[-1]


def select(x: Tensor, dtype: torch.dtype | None = None) -> str | None:
    """The operator library for tensors like `x` (or of `dtype`); None means the plain PyTorch of `fastwm.ref`."""
    dtype = dtype or x.dtype
    where, forced = (x.device.type, dtype), forced_backend()
    if forced is None:
        return _FASTEST.get(where)
    if forced == "ref":
        return None
    if where not in _SERVES[forced]:
        missing = _lib.problems.get({"cpu": "_C", "cuda": "_C_cuda"}.get(forced, forced))
        raise ValueError(
            f"backend '{forced}' does not serve {dtype} on {x.device}" + (f": {missing}" if missing else "")
        )
    return _SERVES[forced][where]


def autocast_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, the tensors in float32 at least, in which returns are computed; else as they are."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in tensors)


def bf16_products(like: Tensor) -> bool:
    """Whether autocast asks for products in bfloat16 (with float32 sums; all else stays float32)."""
    device = like.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


def uncached_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast as it is, in a region that shares no casts of weights with what follows."""
    device = like.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


def check_alike(**tensors: Tensor) -> None:
    """Raises ValueError unless all tensors have one shape, one floating dtype and one device."""
    first, *others = tensors.values()
    for x in others:
        if x.shape != first.shape or x.dtype != first.dtype or x.device != first.device:
            names = ", ".join(f"{name} {list(x.shape)} {x.dtype} {x.device}" for name, x in tensors.items())
            raise ValueError(f"expected tensors of one shape, dtype and device, got {names}")
    if not first.dtype.is_floating_point:
        raise ValueError(f"expected floating-point tensors, got {', '.join(tensors)} of {first.dtype}")


Shapes = dict[str, tuple[Tensor | None, tuple[int, ...]]]


def check_shapes(name: str, like: Tensor, expected: Shapes, data: Shapes) -> None:
    """Raises ValueError unless each has its shape and the device of `like`, and the expected its floating dtype too.

    Data is converted to that dtype, which complex numbers cannot be.
    """
    if not like.dtype.is_floating_point:
        raise ValueError(f"expected a floating-point {name}, got {like.dtype}")
    for part, (x, shape) in (expected | data).items():
        if x is None or x.shape != shape or x.device != like.device:
            got = None if x is None else f"{list(x.shape)} on {x.device}"
            raise ValueError(f"expected {part} {list(shape)} on {like.device}, got {got}")
        if x.dtype != like.dtype and (part in expected or x.is_complex()):
            half = {x.dtype, like.dtype} & {torch.bfloat16, torch.float16}
            remedy = "keep the module in float32 and use torch.autocast" if half else "convert one of them with .to()"
            raise ValueError(f"expected one dtype, got {name} {like.dtype} and {part} {x.dtype}: {remedy}")


def check_widths(**widths: int) -> None:
    """Raises ValueError unless all are 1 or more."""
    if any(width < 1 for width in widths.values()):
        raise ValueError(f"expected widths of 1 or more, got {', '.join(f'{k} {n}' for k, n in widths.items())}")


class Operator:
    """One operator of every library, `fastwm::name` (C++), `fastwm_triton::name`, called by library.

    Args:
        name: as in csrc/schema.cpp; a library that lacks it is passed over.
        fake: `fake(*args)` gives outputs of the right shapes, dtypes and strides.
        vmap: `vmap(op, info, in_dims, *args)`, its batching rule.
        backward: `backward(library, ctx, *grads)`, its derivative. Without one, differentiating is an error.
        setup_context: `setup_context(ctx, inputs, output)`, which saves what `backward` reads.

    A call takes the shortest way there is. What `torch.library.register_autograd` makes serves torch.compile
    and export. It does not know torch.func, and costs eager code about 14 us a forward and backward: these
    two go through an autograd.Function of the same formula. A call without gradients passes below autograd.
    """

    def __init__(
        self,
        name: str,
        *,
        fake: Callable[..., Any],
        vmap: Callable[..., Any],
        backward: Callable[..., Any] | None = None,
        setup_context: Callable[..., None] | None = None,
    ) -> None:
        self.ops: dict[str, Any] = {}
        self.kernels: set[tuple[str | None, str]] = set()
        self.eager: dict[str, type[torch.autograd.Function]] = {}
        self.functional: dict[str, type[torch.autograd.Function]] = {}
        for library in _LIBRARIES:
            if not hasattr(getattr(torch.ops, library), name):
                continue
            op = self.ops[library] = getattr(getattr(torch.ops, library), name).default
            for device in ("cpu", "cuda"):
                if torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{name}", device.upper()):
                    self.kernels.add((library, device))
            formula = partial(backward, library) if backward else partial(_refuse, name)
            torch.library.register_fake(f"{library}::{name}", fake)
            torch.library.register_vmap(f"{library}::{name}", partial(vmap, op))
            torch.library.register_autograd(f"{library}::{name}", formula, setup_context=setup_context)
            self.eager[library] = _eager_function(op, formula, setup_context)
            self.functional[library] = _functional_function(op, formula, setup_context)

    def library(self, x: Tensor) -> str | None:
        """`select(x)`, where that library has a kernel of this operator for x's device; else None."""
        library = select(x)
        return library if (library, x.device.type) in self.kernels else None

    def __call__(self, library: str, *args: Any) -> Any:
        op = self.ops[library]
        if torch.compiler.is_compiling():
            return op(*args)
        if torch._C._are_functorch_transforms_active():
            return self.functional[library].apply(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return self.eager[library].apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)


def _refuse(name: str, ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f"fastwm::{name} has no derivative; `with fastwm.backend('ref')` has derivatives of any order")


def _eager_function(
    op: Any, backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*args)
        if setup_context:
            setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"Eager_{op.name()}", (torch.autograd.Function,), methods)


def _functional_function(
    op: Any, backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> type[torch.autograd.Function]:
    methods = {
        "forward": staticmethod(lambda *args: op(*args)),
        "setup_context": staticmethod(setup_context or (lambda ctx, inputs, output: None)),
        "backward": staticmethod(backward),
        "generate_vmap_rule": True,
    }
    return type(f"Functional_{op.name()}", (torch.autograd.Function,), methods)


def vmap_columns(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """The batching rule of time-major operators over independent columns: map the dimension after time."""

    def column(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.movedim(dim, 1) if dim is not None else x.unsqueeze(1).expand(len(x), info.batch_size, *x.shape[1:])

    outputs = op(*map(column, args, in_dims))
    return outputs, (1,) * len(outputs) if isinstance(outputs, tuple) else 1


def no_vmap(name: str) -> Callable[..., Any]:
    """The batching rule of operators that take a batch themselves: an error that says so."""

    def rule(op: Any, info: Any, in_dims: Any, *args: Any) -> Any:
        raise RuntimeError(f"{name} takes a batch: put the mapped dimension there, or use `fastwm.backend('ref')`")

    return rule


def vmap_loop(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """The batching rule of operators whose parameters may be mapped too: one call each."""
    calls = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims))) for i in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    return tuple(map(torch.stack, zip(*calls))), (0,) * len(calls[0])
