"""Which backend serves a call, and how an operator is registered: everything that operators share."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from fastwm import _lib
from fastwm.ops import _declared

if _lib.has_triton:
    import fastwm.triton  # noqa: F401  (defines the operators of fastwm_triton)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
KERNEL_DTYPES = (torch.float32, torch.float64)  # of whole sequences


@dataclass(frozen=True, eq=False)
class Library:
    """One set of kernels: a namespace of torch operators, what it serves, and why it is not there.

    Args:
        namespace: of its operators in `torch.ops`.
        file: where it is, in the package.
        backend: the name it is forced by.
        devices: the devices whose tensors it takes, in all of `_DTYPES`.
        problem: why it could not be loaded.
        automatic: the devices it serves where no backend is forced.
    """

    namespace: str
    file: str
    backend: str
    devices: tuple[str, ...]
    problem: str | None = None
    automatic: tuple[str, ...] = ()


_BACKENDS = ("cpu", "cuda", "triton", "ref")  # ref is plain PyTorch, and has no library
_SERVES: dict[str, dict[tuple[str, torch.dtype], Library]] = {name: {} for name in _BACKENDS}
_FASTEST: dict[tuple[str, torch.dtype], Library] = {}
_LIBRARIES: list[Library] = []
_OPERATORS: list["Operator"] = []


def add_library(library: Library) -> None:
    """Makes a library's kernels serve its backend; of two for one device and dtype, the later is the faster."""
    _LIBRARIES.append(library)
    if library.problem is None:
        for dtype in _DTYPES:
            _SERVES[library.backend] |= {(device, dtype): library for device in library.devices}
            _FASTEST.update({(device, dtype): library for device in library.automatic})
    for operator in _OPERATORS:
        operator.register(library)


def _known(name: str | None) -> str | None:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"unknown backend '{name}'; the backends are {', '.join(_BACKENDS)}")
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


def select(x: Tensor, dtype: torch.dtype | None = None) -> Library | None:
    """The library for tensors like `x` (or of `dtype`); None means the plain PyTorch of `fastwm.ref`."""
    where, forced = (x.device.type, dtype or x.dtype), forced_backend()
    if forced is None:
        return _FASTEST.get(where)
    if forced == "ref":
        return None
    library = _SERVES[forced].get(where)
    if library is None:
        problems = [each.problem for each in _LIBRARIES if each.backend == forced and each.problem]
        why = f": {problems[0]}" if problems else ""
        raise ValueError(f"backend '{forced}' does not serve {where[1]} on {x.device}{why}")
    return library


def autocast_is_on(like: Tensor) -> bool:
    """Whether autocast is on for the device of `like`; PyTorch refuses the question for the meta device."""
    return like.device.type != "meta" and torch.is_autocast_enabled(like.device.type)


def autocast_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, the tensors in float32 at least, in which returns are computed; else as they are."""
    if not autocast_is_on(tensors[0]):
        return tensors
    return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in tensors)


def bf16_products(like: Tensor) -> bool:
    """Whether autocast asks for products in bfloat16 (with float32 sums; all else stays float32)."""
    return autocast_is_on(like) and torch.get_autocast_dtype(like.device.type) == torch.bfloat16


def uncached_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast as it is, in a region that shares no casts of weights with what follows."""
    if not autocast_is_on(like):
        return nullcontext()
    device = like.device.type
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


def check_tensor(name: str, x: Tensor, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raises ValueError unless x has this shape, the device of `like`, and this dtype; without one, a floating one."""
    fits = x.dtype == dtype if dtype else x.dtype.is_floating_point
    if x.shape != shape or x.device != like.device or not fits:
        raise ValueError(
            f"expected {name} {list(shape)} {dtype or 'floating-point'} on {like.device}, "
            f"got {list(x.shape)} {x.dtype} on {x.device}"
        )


def check_dims(**tensors: tuple[Tensor, str]) -> None:
    """Raises ValueError unless each has as many dimensions as its shape, such as `[T, B, E]`."""
    for name, (x, shape) in tensors.items():
        if x.dim() != shape.count(",") + 1:
            raise ValueError(f"expected {name} {shape}, got {list(x.shape)}")


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


def layer_shapes(name: str, layer: Any, shape: tuple[int, ...]) -> Shapes:
    """The shapes of a layer's parameters: its weight's, [out, in] or [G, in, out] in blocks, and its vectors' [out]."""
    (weight, *vectors), (_, *names) = layer, layer._fields
    out = shape[0] if len(shape) == 2 else shape[0] * shape[2]
    needed = not layer._field_defaults
    given = {f"{name}.{part}": (x, (out,)) for part, x in zip(names, vectors) if needed or x is not None}
    return {f"{name}.weight": (weight, shape), **given}


def check_widths(**widths: int) -> None:
    """Raises ValueError unless all are 1 or more."""
    if any(width < 1 for width in widths.values()):
        raise ValueError(f"expected widths of 1 or more, got {', '.join(f'{k} {n}' for k, n in widths.items())}")


class Operator:
    """One operator of every library, `fastwm::name` (C++), `fastwm_triton::name`, called by library.

    A call returns the declared outputs without those that only the backward reads.

    Args:
        name: as declared; a library that lacks it is passed over. The declaration gives fake, saved tensors and
            gradients.
        vmap: `vmap(op, info, in_dims, *args)`, its batching rule, and its backward's.
        functions: what the declaration calls by name.

    A call takes the shortest way there is. What `torch.library.register_autograd` makes serves torch.compile
    and export. It does not know torch.func, and costs eager code about 14 us a forward and backward: these
    two go through an autograd.Function of the same formula. A call without gradients passes below autograd.
    """

    def __init__(self, name: str, vmap: Callable[..., Any], **functions: Callable[..., Any]) -> None:
        op = _declared.OPS[name]
        self.name, self.vmap = name, vmap
        self.fake = _declared.fake(op, functions)
        self.backward = Operator(op.backward.name, vmap, **functions) if op.backward else None
        shown = len(op.outputs) - len(op.saved)
        self.shown = (
            None if not op.saved else 0 if shown == 1 else slice(shown)
        )  # without what the backward alone reads
        self.setup_context: Callable[..., None] | None = None
        self.derivative: Callable[..., Any] = partial(_refuse, name)
        if self.backward:
            self.setup_context = _declared.setup_context(op)
            self.derivative = _declared.derivative(op, self.backward)
        self.ops: dict[str, Any] = {}  # by namespace, as the others
        self.kernels: set[tuple[str, str]] = set()
        self.eager: dict[str, type[torch.autograd.Function]] = {}
        self.functional: dict[str, type[torch.autograd.Function]] = {}
        _OPERATORS.append(self)
        for library in _LIBRARIES:
            self.register(library)

    def register(self, library: Library) -> None:
        namespace, name = library.namespace, self.name
        if namespace in self.ops or not hasattr(getattr(torch.ops, namespace), name):
            return
        op = self.ops[namespace] = getattr(getattr(torch.ops, namespace), name).default
        for device in ("cpu", "cuda"):
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", device.upper()):
                self.kernels.add((namespace, device))
        formula = partial(self.derivative, library) if self.backward else self.derivative
        torch.library.register_fake(f"{namespace}::{name}", self.fake)
        torch.library.register_vmap(f"{namespace}::{name}", partial(self.vmap, op))
        torch.library.register_autograd(f"{namespace}::{name}", formula, setup_context=self.setup_context)
        self.eager[namespace] = _eager_function(op, formula, self.setup_context)
        self.functional[namespace] = _functional_function(op, formula, self.setup_context)

    def library(self, x: Tensor) -> Library | None:
        """`select(x)`, where that library has a kernel of this operator for x's device; else None."""
        library = select(x)
        return library if library and (library.namespace, x.device.type) in self.kernels else None

    def __call__(self, library: Library, *args: Any) -> Any:
        namespace = library.namespace
        op = self.ops[namespace]
        if torch.compiler.is_compiling():
            outputs = op(*args)
        elif torch._C._are_functorch_transforms_active():
            outputs = self.functional[namespace].apply(*args)
        elif torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            outputs = self.eager[namespace].apply(*args)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = op(*args)
        return outputs if self.shown is None else outputs[self.shown]


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


def vmap_rows(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """The batching rule of operators over independent rows: the mapped dimension leads."""

    def lead(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.movedim(dim, 0) if dim is not None else x.expand(info.batch_size, *x.shape)

    outputs = op(*map(lead, args, in_dims))
    return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0


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


_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_triton_devices = ("cuda", "cpu") if _INTERPRETED else ("cuda",)
_triton_problem = _lib.problems.get("triton")
add_library(Library("fastwm_triton", "triton", "triton", _triton_devices, _triton_problem, automatic=("cuda",)))
add_library(Library("fastwm", "_C_cuda.so", "cuda", ("cuda",), _lib.problems.get("_C_cuda"), automatic=("cuda",)))
add_library(Library("fastwm", "_C.so", "cpu", ("cpu",), _lib.problems.get("_C"), automatic=("cpu",)))
