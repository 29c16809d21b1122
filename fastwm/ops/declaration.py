"""Reads the operators' declarations, `declarations/*.toml`.

An operator's arguments, outputs and gradients are stated there once. build_tools/generate.py writes the C++ from
them (params structs, hosts, schema, registrations); `fastwm.ops._declared` makes the Python side (fakes, saved
tensors, gradients, checks). The language is explained in declarations/README.md. Standard library only: the build
reads this file without fastwm and without torch.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "declarations"
SCALARS = ("int", "float", "bool")
LISTS = ("int[]", "float[]", "Tensor[]", "Tensor(a!)[]", "Tensor(b!)[]", "Tensor(c!)[]")
DTYPES = ("bool", "int64", "int32", "float32", "wide")  # any other name is a letter: the dtype of its first argument
FLAGS = ("linear", "blocks", "raw", "zeros", "packed")


class DeclarationError(ValueError):
    """A declaration that cannot be read."""


@dataclass(frozen=True)
class Value:
    """An argument or an output."""

    name: str
    kind: str = "tensor"  # or a scalar, a list, the name of an enumeration
    shape: tuple[str, ...] = ()
    dtype: str = "dtype"
    optional: bool = False
    flags: frozenset[str] = frozenset()
    when: str | None = None  # an output: the flag without which it is empty; an argument: the flag that has it saved
    place: str | None = None  # in the params struct
    of: tuple[str, ...] = ()  # an output of a backward: the inputs whose gradient it is
    pack: tuple["Value", ...] = ()  # an output of a backward: the gradients that it holds, one after the other

    @property
    def schema_type(self) -> str:
        if self.is_tensor:
            return f"Tensor{'?' if self.optional else ''}"
        return self.kind if self.kind in (*SCALARS, *LISTS) else "int"  # an enumeration

    @property
    def is_tensor(self) -> bool:
        return self.kind == "tensor"

    @property
    def field(self) -> str:
        return self.place or self.name

    @property
    def text(self) -> str:
        return f"{self.name} [{', '.join(self.shape)}]"


@dataclass(frozen=True)
class Condition:
    """`name = expression`, or, without a name, an expression that has to hold."""

    name: str | None
    expression: str
    message: str | None = None


@dataclass
class Op:
    """One torch operator."""

    name: str
    family: str
    inputs: list[Value]
    outputs: list[Value]
    conditions: list[Condition]
    dtypes: tuple[str, ...]
    options: dict[str, Any]
    backward: "Op | None" = None
    gradients: dict[str, str] = field(default_factory=dict)  # input -> Python, where it is not an output of backward

    @property
    def schema(self) -> str:
        inputs = ", ".join(f"{x.schema_type} {x.name}" for x in self.inputs)
        outputs = [x.schema_type for x in self.outputs]
        return f"{self.name}({inputs}) -> {outputs[0] if len(outputs) == 1 else '(' + ', '.join(outputs) + ')'}"

    @property
    def tensors(self) -> list[Value]:
        return [x for x in self.inputs if x.is_tensor]

    @property
    def saved(self) -> list[Value]:
        """The outputs that only the backward reads."""
        return [x for x in self.outputs if "saved" in x.flags]

    @property
    def scratch(self) -> list[Value]:
        """Tensors for the kernel alone."""
        text = self.options.get("scratch", "")
        return [] if text == "bytes" else list(_values(text, {}, {}))

    @property
    def params(self) -> str:
        camel = "".join(part.capitalize() for part in self.name.split("_"))
        return str(self.options.get("params") or self.options.get("struct") or camel)

    @property
    def kernel(self) -> str:
        return str(self.options.get("kernel") or f"{self.name}_kernel")

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.options.get("devices", "cpu cuda").split())

    def bindings(self, among: Sequence[str] | None = None) -> list[tuple[Value, tuple[str, ...]]]:
        """Which tensor's shape gives which letters: the first (of those in `among`) that has a letter on its own."""
        known: set[str] = {c.name for c in self.conditions if c.name}
        found = []
        tensors = self.tensors if among is None else [x for x in self.tensors if x.name in among]
        for x in sorted(tensors, key=lambda x: x.optional):
            new = tuple(d for d in map(bare, x.shape) if d and d not in known)
            known |= {*new}
            if new:
                found.append((x, new))
        return found

    def dtype_bindings(self) -> dict[str, Value]:
        """Which tensor's dtype each letter of a dtype is."""
        found: dict[str, Value] = {}
        for x in sorted(self.tensors, key=lambda x: x.optional):
            if x.dtype.isidentifier() and x.dtype not in DTYPES:
                found.setdefault(x.dtype, x)
        return found


def bare(dim: str) -> str | None:
    """The letter that a dimension binds: `T`, `*batch` or `C?`."""
    letter = dim.removeprefix("*").removesuffix("?")
    return letter if letter.isidentifier() else None


def load(folder: Path = FOLDER) -> tuple[dict[str, Op], dict[str, tuple[str, ...]]]:
    """All operators by name, and all enumerations."""
    tables = {path.stem: tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml"))}
    enums: dict[str, tuple[str, ...]] = {}
    for table in tables.values():
        enums |= {name: tuple(names.split()) for name, names in table.pop("enums", {}).items()}
    groups = {name: group for table in tables.values() for name, group in table.pop("groups", {}).items()}
    conditions = {name: each for table in tables.values() for name, each in table.pop("conditions", {}).items()}
    ops = {}
    for family, table in tables.items():
        defaults = table.pop("defaults", {})
        for name, entry in table.items():
            entry = defaults | entry
            for part in [entry, entry["backward"]] if "backward" in entry else [entry]:
                part["where"] = _expand(part["where"], conditions) if "where" in part else []
            op = _op(name, family, entry, enums, groups)
            ops[name] = op
            if op.backward:
                ops[op.backward.name] = op.backward
    return ops, enums


def _expand(where: list[str], groups: dict[str, list[str]]) -> list[str]:
    return [each for text in where for each in (groups[text[4:]] if text.startswith("use ") else [text])]


def _op(name: str, family: str, entry: dict[str, Any], enums: dict[str, Any], groups: dict[str, str]) -> Op:
    entry = dict(entry)
    backward = entry.pop("backward", None)
    inputs = []
    for key in ("inputs", "weights", "options"):
        flags = {"packed"} if key == "weights" else {*()}
        inputs += [replace(x, flags=x.flags | flags) for x in _values(entry.pop(key, ""), enums, groups)]
    outputs = [*_values(entry.pop("outputs", ""), enums, groups)]
    for x in _values(entry.pop("saved", ""), enums, groups):
        save = "save" if any(i.name == "save" and i.kind == "bool" for i in inputs) else None
        outputs.append(replace(x, flags=x.flags | {"saved"}, when=x.when or save))
    op = Op(name, family, inputs, outputs, _conditions(entry), _dtypes(entry), entry)
    if backward:
        op.backward = _backward(op, dict(backward), enums, groups)
    return op


def _backward(op: Op, entry: dict[str, Any], enums: dict[str, Any], groups: dict[str, str]) -> Op:
    inputs_of, outputs_of = {x.name: x for x in op.inputs}, {x.name: x for x in op.outputs}
    known = inputs_of | {name: replace(x, when=None, flags=frozenset(), place=None) for name, x in outputs_of.items()}
    known |= {f"g_{name}": replace(x, name=f"g_{name}", when=None, flags=frozenset(), place=None)
              for name, x in outputs_of.items()}  # fmt: skip
    inputs = [_inherit(x, known) for x in _values(entry.pop("inputs"), enums, groups)]
    op.gradients = entry.pop("gradients", {})
    plain: dict[str, Any] = {"place": None, "when": None, "flags": frozenset(), "optional": False}
    gradients = {f"d_{name}": replace(x, name=f"d_{name}", of=(name,), **plain) for name, x in inputs_of.items()}
    outputs = []
    for x in _values(entry.pop("outputs"), enums, groups):
        if x.of and not x.shape:
            x = replace(gradients[f"d_{x.of[0]}"], name=x.name, of=x.of, place=x.place, when=x.when, optional=False)
        elif "packed" in x.flags:
            parts = x.pack or tuple(Value(w.name) for w in op.inputs if "packed" in w.flags)
            pack = tuple(part if part.shape else replace(inputs_of[part.name], place=None) for part in parts)
            x = replace(x, pack=pack)
        else:
            x = _inherit(x, gradients)
        outputs.append(x)
    shared = ("dtypes", "devices", "sizes", "slots", "run", "fields", "places", "header", "cpp", "python", "params")
    entry = {key: op.options[key] for key in shared if key in op.options} | entry
    name = entry.pop("name", f"{op.name}_backward")
    conditions = entry.pop("where") or op.options["where"]
    return Op(name, op.family, inputs, outputs, _conditions({"where": conditions}), _dtypes(entry), entry)


def _inherit(x: Value, known: dict[str, Value]) -> Value:
    """How a backward refers to a value that the forward declares."""
    if x.shape or x.kind != "tensor" or x.name not in known:
        return x
    old = known[x.name]
    return replace(old, optional=old.optional or x.optional, when=x.when, place=x.place or old.place,
                   flags=old.flags | x.flags)  # fmt: skip


def _conditions(entry: dict[str, Any]) -> list[Condition]:
    found = []
    for text in entry.get("where", []):
        text, _, message = text.partition(" : ")
        name, equals, expression = (part.strip() for part in text.partition(" = "))
        found.append(Condition(name, expression) if equals else Condition(None, name, message.strip() or None))
    return found


def _dtypes(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(entry.get("dtypes", "float32 float64 bfloat16").split())


_ENTRY = re.compile(
    r"(?P<names>[\w.]+\??(?:\s*,\s*[\w.]+\??)*)\s*(?P<of>\([^)]*\))?\s*(?P<shape>\[[^\]]*\])?(?P<words>[^;]*)",
    re.DOTALL,
)


def _values(text: str, enums: dict[str, Any], groups: dict[str, str]) -> Iterator[Value]:
    for entry in _entries(text):
        if entry.startswith("use "):
            yield from _values(groups[entry.removeprefix("use ").strip()], enums, groups)
            continue
        match = _ENTRY.fullmatch(entry)
        if not match:
            raise DeclarationError(f"cannot read {entry!r}")
        yield from _entry(match, enums, groups)


def _entries(text: str) -> Iterable[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return filter(None, (part.strip() for line in lines for part in line.split(";")))


def _entry(match: re.Match[str], enums: dict[str, Any], groups: dict[str, str]) -> Iterator[Value]:
    words, kind, dtype, flags, when, place = match["words"].split(), "tensor", "dtype", set(), None, None
    pack: tuple[Value, ...] = ()
    while words:
        word = words.pop(0)
        if word == "as":
            place = words.pop(0)
        elif word == "if":
            when = words.pop(0)
        elif word == "pack":
            flags.add("packed")
            pack = tuple(_values(" ".join(words).replace("|", ";"), enums, groups))
            words = []
        elif (word in SCALARS and not match["shape"]) or word in LISTS or word in enums:
            kind = word
        elif word in FLAGS:
            flags.add(word)
        elif re.fullmatch(r"(\w+\?)?\w+", word):
            dtype = word
        else:
            raise DeclarationError(f"cannot read {word!r} in {match[0]!r}")
    shape = tuple(part.strip() for part in (match["shape"] or "[]")[1:-1].split(",") if part.strip())
    if match["shape"] and not shape and kind == "tensor":
        flags.add("scalar")
    of = tuple(name.strip() for name in (match["of"] or "()")[1:-1].split(",") if name.strip())
    for name in match["names"].split(","):
        name = name.strip()
        yield Value(
            name.removesuffix("?"), kind, shape, dtype, name.endswith("?"), frozenset(flags), when, place, of, pack
        )


# ------------------------------------------------------------------------------------------------- expressions


def parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def names_in(expression: str) -> set[str]:
    return {node.id for node in ast.walk(parse(expression)) if isinstance(node, ast.Name)}


def stars(op: Op) -> set[str]:
    """The letters that stand for any number of dimensions."""
    return {d[1:] for x in [*op.inputs, *op.outputs] for d in x.shape if d.startswith("*")}
