"""The Python side of the operators' declarations, made from source as `dataclasses` makes methods.

`fake(op)`, `setup_context(op)` and `derivative(op, backward)` serve `fastwm.ops._backend.Operator`.
"""

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from fastwm.ops.declaration import (
    DTYPES,
    Op,
    Value,
    bare,
    load,
    names_in,
    parse,
    stars,
)

OPS, NAMES = load()


def numbers(enum: str) -> dict[str, int]:
    """An enumeration's names and the numbers that operators take."""
    return {name: i for i, name in enumerate(NAMES.enums[enum])}


def lists(type: str, items: Iterable[Any]) -> list[list[Any]]:
    """Things of a declared type as operators take them: a list for each of its members."""

    def convert(kind: str, value: Any) -> Any:
        return numbers(kind)[value] if kind in NAMES.enums else float(value) if kind == "float" else int(value)

    return [[convert(each.kind, getattr(item, each.name)) for item in items] for each in NAMES.types[type]]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_NAMESPACE: dict[str, Any] = {"torch": torch, "prod": math.prod, "wide": wide}


def _make(name: str, arguments: Sequence[str], body: Iterable[str], **names: Any) -> Callable[..., Any]:
    source = f"def {name}({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in body)
    namespace = _NAMESPACE | names
    exec(compile(source, f"<declared {name}>", "exec"), namespace)
    made: Callable[..., Any] = namespace[name]
    made.__doc__ = source
    return made


class _Expressions(ast.NodeTransformer):
    """A declaration's expression in Python: starred letters are products, enumerators numbers, `/` is exact."""

    def __init__(self, op: Op) -> None:
        self.stars = stars(op)
        letters = {letter for _, new in op.bindings() for letter in new}
        kinds = [NAMES.enums[x.kind] for x in op.inputs if x.kind in NAMES.enums]
        self.numbers = {name: i for names in kinds for i, name in enumerate(names) if name not in letters}

    def __call__(self, text: str) -> str:
        return ast.unparse(self.visit(parse(text)))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.stars:
            return parse(f"prod({node.id})")
        return ast.Constant(self.numbers[node.id]) if node.id in self.numbers else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return ast.BinOp(node.left, ast.FloorDiv(), node.right) if isinstance(node.op, ast.Div) else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node.func) == "given":
            (argument,) = node.args
            return parse(f"({ast.unparse(argument)} is not None)")
        self.generic_visit(node)
        return node


def _dim_names(shape: Iterable[str]) -> set[str]:
    return {name for d in shape for name in ({bare(d)} if bare(d) else names_in(d)) if name}


def _needed(op: Op, names: set[str]) -> set[str]:
    for condition in reversed(op.conditions):
        if condition.name in names:
            names = names | names_in(condition.expression)
    return names


def _letters(op: Op, names: set[str], among: Sequence[str] | None = None) -> list[str]:
    """Lines that set these letters and definitions, from shapes of the tensors in `among`."""
    names, lines = _needed(op, names), []
    for x, new in op.bindings(among):
        if names & {*new}:
            lines += _unpack(x, names & {*new})
    write = _Expressions(op)
    lines += [f"{c.name} = {write(c.expression)}" for c in op.conditions if c.name and c.name in names]
    by_hand = op.options.get("python", {})
    return lines + [f"{name} = {expression}" for name, expression in by_hand.items() if name in names]


def _unpack(x: Value, wanted: set[str]) -> list[str]:
    parts, after = [], []
    for d in x.shape:
        letter = bare(d) if bare(d) in wanted else None
        if d.startswith("*"):
            parts.append(f"*{letter or '_'}")
        elif d.endswith("?"):
            parts.append("*rest")
            after = [f"({letter},) = rest or (0,)"] if letter else []
        else:
            parts.append(letter or "_")
    return [f"{', '.join(parts)}{',' if len(parts) == 1 else ''} = {x.name}.shape", *after]


def _shape(op: Op, shape: Sequence[str], when: str | None = None) -> str:
    write = _Expressions(op)
    dims = [
        d if d.startswith("*") else f"*(({d[:-1]},) if {d[:-1]} else ())" if d.endswith("?") else write(d)
        for d in shape
    ]
    if when and dims and not dims[0].startswith("*"):
        dims[0] = f"{dims[0]} if {when} else 0"
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


def _size(op: Op, shape: Sequence[str]) -> str:
    write = _Expressions(op)
    return " * ".join(d if d.isidentifier() else f"({write(d)})" for d in shape)


def _dtype(op: Op, x: Value) -> str:
    flag, _, name = x.dtype.rpartition("?")
    main = op.dtype_bindings()
    if flag:
        return f"torch.{name} if {flag} else {main['dtype'].name}.dtype"
    if name == "wide":
        return f"wide({next(iter(main.values())).name}.dtype)"
    return f"torch.{name}" if name in DTYPES else f"{main[name].name}.dtype"


def fake(op: Op, functions: dict[str, Any]) -> Callable[..., Any]:
    """`fake(*args)`: outputs of the right shapes, dtypes and strides; the declaration calls `functions` by name."""
    given = {x.name: x for x in op.inputs}
    like = next(x for x in op.tensors if not x.optional).name
    lines, outputs, names = [], [], set()
    for x in op.outputs:
        if not x.is_tensor:
            expression = op.options["python"][x.name]
            outputs.append(expression)
            names |= names_in(expression) - given.keys()
            continue
        if x.pack and not x.shape:
            sizes = " + ".join(_size(op, part.shape) for part in x.pack)
            shape = f"({sizes} if {x.when} else 0,)" if x.when else f"({sizes},)"
            names |= {name for part in x.pack for name in _dim_names(part.shape)}
        else:
            shape = _shape(op, x.shape, x.when)
            names |= _dim_names(x.shape)
        if len(x.of) == 1 and x.of[0] in given and given[x.of[0]].optional:
            shape = f"{shape} if {x.of[0]} is not None else (0,)"
        outputs.append(f"{like}.new_empty({shape}, dtype={_dtype(op, x)})")
    lines += _letters(op, names)
    lines.append(f"return {', '.join(outputs)}" if outputs else "return None")
    return _make(f"fake_{op.name}", list(given), lines, **functions)


def check(op: Op) -> Callable[..., None]:
    """`check(*args)`: a ValueError for what the host in C++ would refuse, in the same words."""
    like = next(x for x in op.tensors if not x.optional).name
    write, lines = _Expressions(op), []
    for x, new in op.bindings():
        fixed = sum(not d.startswith("*") and not d.endswith("?") for d in x.shape)
        most = fixed if fixed == len(x.shape) else "None"
        lines += [f"_dims({op.name!r}, {x.text!r}, {x.name}, {fixed}, {most})", *_unpack(x, {*new})]
    lines += [f"_dtypes({op.name!r}, {x.name!r}, {x.name}, {op.dtypes})" for x in op.dtype_bindings().values()]
    for condition in op.conditions:
        if condition.name:
            lines.append(f"{condition.name} = {write(condition.expression)}")
            continue
        shown = sorted(names_in(condition.expression) & {*op.letters, *(x.name for x in op.inputs if not x.is_tensor)})
        text = f"{op.name}: {condition.message or f'expected {condition.expression}'}"
        got = f", got {', '.join(f'{name} = {{{name}}}' for name in shown)}" if shown else ""
        lines.append(f"if not ({write(condition.expression)}): raise ValueError(f{text + got!r})")
    for x in op.tensors:
        lines.append(f"_fits({op.name!r}, {x.text!r}, {x.name}, {_shape(op, x.shape)}, {_dtype(op, x)}, {like})")
    return _make(f"check_{op.name}", [x.name for x in op.inputs], lines, _dims=_dims, _dtypes=_dtypes, _fits=_fits)


def _dims(op: str, text: str, x: torch.Tensor, fixed: int, most: int | None) -> None:
    if x.dim() < fixed or (most is not None and x.dim() > most):
        raise ValueError(f"{op}: expected {text}, got {list(x.shape)}")


def _dtypes(op: str, name: str, x: torch.Tensor, allowed: Sequence[str]) -> None:
    if str(x.dtype).removeprefix("torch.") not in allowed:
        raise ValueError(f"{op}: expected {name} of {' or '.join(allowed)}, got {x.dtype}")


def _fits(
    op: str, text: str, x: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor
) -> None:
    if x is not None and (x.shape != shape or x.dtype != dtype or x.device != like.device):
        wanted, got = (f"{list(size)} {kind} on {on}" for size, kind, on in
                       ((shape, dtype, like.device), (x.shape, x.dtype, x.device)))  # fmt: skip
        raise ValueError(f"{op}: expected {text} = {wanted}, got {got}")


def _is_differentiable(x: Value) -> bool:
    return "saved" not in x.flags and x.dtype not in ("int64", "int32", "bool")


def _read(op: Op) -> list[Value]:
    """The tensors that the backward reads of the forward."""
    assert op.backward is not None
    known = {x.name for x in op.inputs} | {x.name for x in op.outputs}
    return [x for x in op.backward.inputs if x.is_tensor and x.name in known]


def _zeros_for(op: Op) -> list[str]:
    """The gradients of outputs that the backward always needs, where autograd may have none."""
    assert op.backward is not None
    outputs = [f"g_{x.name}" for x in op.outputs if _is_differentiable(x)]
    return [x.name for x in op.backward.inputs if x.name in outputs and not x.optional] if len(outputs) > 1 else []


def _zeros(op: Op, name: str, read: list[str]) -> list[str]:
    """Lines that make a missing gradient zero, like its output where that is saved."""
    assert op.backward is not None
    back, output = op.backward, name.removeprefix("g_")
    if output in read:
        return [f"if {name} is None: {name} = torch.zeros_like({output})"]
    g = next(x for x in back.inputs if x.name == name)
    like = next(x.name for x in back.inputs if x.dtype == g.dtype and x.name in read and not x.optional)
    make = [*_letters(back, _dim_names(g.shape), read), f"{name} = {like}.new_zeros({_shape(back, g.shape)})"]
    return [f"if {name} is None:", *(f"    {line}" for line in make)]


def _kept_flags(op: Op) -> list[str]:
    """The optional inputs with a gradient that the backward does not read."""
    assert op.backward is not None
    read = {x.name for x in _read(op)}
    return [x.name for x in op.tensors if x.optional and x.name not in read and _gradient_of(op, x)]


def setup_context(op: Op) -> Callable[..., None]:
    """`setup_context(ctx, inputs, output)`: saves what the backward reads."""
    assert op.backward is not None
    names = {x.name for x in op.inputs}
    inputs, outputs = ", ".join(x.name for x in op.inputs), ", ".join(x.name for x in op.outputs)
    lines = [f"{inputs}{',' if len(op.inputs) == 1 else ''} = inputs", f"{outputs} = output"]
    if len(op.outputs) > 1:
        lines.append("ctx.set_materialize_grads(False)")
    hidden = [x.name for x in op.outputs if not _is_differentiable(x)]
    if hidden:
        lines.append(f"ctx.mark_non_differentiable({', '.join(hidden)})")
    saved = [f"{x.name} if {x.when} else None" if x.when else x.name for x in _read(op)]
    lines.append(f"ctx.save_for_backward({', '.join(saved)})")
    scalars = [x.name for x in op.backward.inputs if not x.is_tensor and x.name in names]
    lines += [f"ctx.{name} = {name}" for name in scalars]
    lines += [f"ctx.has_{name} = {name} is not None" for name in _kept_flags(op)]
    return _make(f"setup_context_{op.name}", ["ctx", "inputs", "output"], lines)


def _gradient_of(op: Op, x: Value) -> tuple[Value, Value | None] | None:
    """The output of the backward that holds x's gradient, and its part of it."""
    assert op.backward is not None
    for out in op.backward.outputs:
        if x.name in out.of:
            return out, None
        for part in out.pack:
            if part.name == x.name:
                return out, part
    return None


def derivative(op: Op, call: Callable[..., Any]) -> Callable[..., Any]:
    """`derivative(library, ctx, *grads)`, where `call(library, *args)` is the backward operator."""
    assert op.backward is not None
    back = op.backward
    order = [x.name for x in op.inputs]
    read = [x.name for x in _read(op)]
    grads = {x.name: f"g_{x.name}" if _is_differentiable(x) else f"_{x.name}" for x in op.outputs}
    lines = []
    if len(op.outputs) > 1:
        missing = " and ".join(f"g_{x.name} is None" for x in op.outputs if _is_differentiable(x))
        lines.append(f"if {missing}: return {', '.join('None' for _ in order)}")
    if read:
        lines.append(f"{', '.join(read)}{',' if len(read) == 1 else ''} = ctx.saved_tensors")
    if len(op.outputs) > 1:
        for name in _zeros_for(op):
            lines += _zeros(op, name, read)
    for x in back.inputs:
        if x.of:
            lines.append(f"{x.name} = {' or '.join(f'ctx.needs_input_grad[{order.index(name)}]' for name in x.of)}")
        elif not x.is_tensor:
            lines.append(f"{x.name} = ctx.{x.name}")
    outputs = ", ".join(x.name for x in back.outputs)
    lines.append(f"{outputs} = call(library, {', '.join(x.name for x in back.inputs)})")
    lines += _split(op, read)
    results = [_result(op, x, read) for x in op.inputs]
    lines.append(f"return {', '.join(results)}")
    return _make(f"derivative_{op.name}", ["library", "ctx", *grads.values()], lines, call=call)


def _split(op: Op, read: list[str]) -> list[str]:
    """The gradients that are parts of one array: its rows where a shape is declared, else one after the other."""
    assert op.backward is not None
    back, lines = op.backward, []
    optional = {x.name for x in op.inputs if x.optional}
    for out in back.outputs:
        parts = [f"d_{part.name}" for part in out.pack]
        if not parts:
            continue
        if out.shape:
            lines.append(f"rows = iter({out.name}.unbind())")
            for part, d in zip(out.pack, parts):
                lines.append(f"{d} = next(rows)" + (f" if {part.name} is not None else None" * (part.name in optional)))
            continue
        own = _letters(back, {name for part in out.pack for name in _dim_names(part.shape)}, read)
        own.append(f"{', '.join(parts)} = {out.name}.split([{', '.join(_size(back, p.shape) for p in out.pack)}])")
        own += [f"{d} = {d}.view({_shape(back, p.shape)})" for d, p in zip(parts, out.pack) if len(p.shape) > 1]
        if out.when:
            own = [f"{' = '.join(parts)} = None", f"if {out.when}:", *(f"    {line}" for line in own)]
        lines += own
    return lines


def _result(op: Op, x: Value, read: list[str]) -> str:
    assert op.backward is not None
    if x.name in op.gradients:
        flag = next((out.when for out in op.backward.outputs if out.pack and out.when), None)
        return f"({op.gradients[x.name]}) if {flag} else None" if flag else op.gradients[x.name]
    found = _gradient_of(op, x) if x.is_tensor else None
    if found is None:
        return "None"
    out, part = found
    result = f"d_{part.name}" if part else out.name
    if x.optional:
        result = f"{result} if {f'{x.name} is not None' if x.name in read else f'ctx.has_{x.name}'} else None"
    elif out.when and not part:
        result = f"{result} if {out.when} else None"
    return result
