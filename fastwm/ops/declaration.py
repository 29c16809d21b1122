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


SHARED = {"dtypes", "devices", "sizes", "types", "members", "run", "fields", "places", "header", "cpp", "python",
          "params"}  # fmt: skip
"""The options that a backward has from its forward."""


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
class Struct:
    """An argument of a declared type, or a list of them: in the schema an argument for each member."""

    name: str
    type: str
    members: dict[str, Value]  # by their names in the type; `net` has the argument `net_w` for its member `w`
    letters: dict[str, str]  # what the type's letters are here
    place: str
    many: bool

    @property
    def values(self) -> list[Value]:
        """The arguments of the schema."""
        if not self.many:
            return list(self.members.values())
        return [Value(x.name, f"{x.schema_type}[]", place="-") for x in self.members.values()]


@dataclass(frozen=True)
class Names:
    """Enumerations, groups and types that entries may refer to."""

    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    types: dict[str, tuple[Value, ...]] = field(default_factory=dict)


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
    structs: tuple[Struct, ...] = ()
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
        return [] if text == "bytes" else _flat(_values(text, Names()))

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

    @property
    def letters(self) -> list[str]:
        """All letters that have a size: bound by shapes, then defined."""
        return [*(d for _, new in self.bindings() for d in new), *(c.name for c in self.conditions if c.name)]

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


def letters_of(members: Iterable[Value]) -> tuple[str, ...]:
    """The letters of a type, in the order in which they appear."""
    return tuple(dict.fromkeys(d for x in members for d in x.shape if bare(d)))


def load(folder: Path = FOLDER) -> tuple[dict[str, Op], Names]:
    """All operators by name, and what they refer to: enumerations, groups and types."""
    tables = {path.stem: tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml"))}
    names = Names()
    for table in tables.values():
        names.enums.update({name: tuple(each.split()) for name, each in table.pop("enums", {}).items()})
        names.groups.update(table.pop("groups", {}))
    for table in tables.values():
        names.types.update({name: tuple(_flat(_values(text, names))) for name, text in table.pop("types", {}).items()})
    conditions = {name: each for table in tables.values() for name, each in table.pop("conditions", {}).items()}
    ops = {}
    for family, table in tables.items():
        defaults = table.pop("defaults", {})
        for name, entry in table.items():
            entry = defaults | entry
            for part in [entry, entry["backward"]] if "backward" in entry else [entry]:
                part["where"] = _expand(part["where"], conditions) if "where" in part else []
            op = _op(name, family, entry, names)
            ops[name] = op
            if op.backward:
                ops[op.backward.name] = op.backward
    return ops, names


def _expand(where: list[str], groups: dict[str, list[str]]) -> list[str]:
    return [each for text in where for each in (groups[text[4:]] if text.startswith("use ") else [text])]


def _flat(values: Iterable[Value | Struct]) -> list[Value]:
    return [each for x in values for each in (x.values if isinstance(x, Struct) else [x])]


def _op(name: str, family: str, entry: dict[str, Any], names: Names) -> Op:
    entry = dict(entry)
    backward = entry.pop("backward", None)
    inputs: list[Value] = []
    structs: list[Struct] = []
    for key in ("inputs", "weights", "options"):
        flags = {"packed"} if key == "weights" else {*()}
        values = [*_values(entry.pop(key, ""), names)]
        structs += [x for x in values if isinstance(x, Struct)]
        inputs += [replace(x, flags=x.flags | flags) for x in _flat(values)]
    outputs = _flat(_values(entry.pop("outputs", ""), names))
    for x in _flat(_values(entry.pop("saved", ""), names)):
        save = "save" if any(i.name == "save" and i.kind == "bool" for i in inputs) else None
        outputs.append(replace(x, flags=x.flags | {"saved"}, when=x.when or save))
    op = Op(name, family, inputs, outputs, _conditions(entry), _dtypes(entry), entry, tuple(structs))
    if backward:
        op.backward = _backward(op, dict(backward), names)
    return op


def _backward(op: Op, entry: dict[str, Any], names: Names) -> Op:
    inputs_of, outputs_of = {x.name: x for x in op.inputs}, {x.name: x for x in op.outputs}
    known = inputs_of | {name: replace(x, when=None, flags=frozenset(), place=None) for name, x in outputs_of.items()}
    known |= {f"g_{name}": replace(x, name=f"g_{name}", when=None, flags=frozenset(), place=None)
              for name, x in outputs_of.items()}  # fmt: skip
    text = entry.pop("inputs")
    for struct in op.structs:  # by its name, all members
        text = re.sub(rf"\b{struct.name}\b", ", ".join(x.name for x in struct.values), text)
    inputs = [_inherit(x, known) for x in _flat(_values(text, names))]
    op.gradients = entry.pop("gradients", {})
    plain: dict[str, Any] = {"place": None, "when": None, "flags": frozenset(), "optional": False}
    gradients = {f"d_{name}": replace(x, name=f"d_{name}", of=(name,), **plain) for name, x in inputs_of.items()}
    outputs = []
    for x in _flat(_values(entry.pop("outputs"), names)):
        if x.of and not x.shape:
            x = replace(gradients[f"d_{x.of[0]}"], name=x.name, of=x.of, place=x.place, when=x.when, optional=False)
        elif "packed" in x.flags:
            parts = x.pack or tuple(Value(w.name) for w in op.inputs if "packed" in w.flags)
            pack = tuple(part if part.shape else replace(inputs_of[part.name], place=None) for part in parts)
            x = replace(x, pack=pack)
        else:
            x = _inherit(x, gradients)
        outputs.append(x)
    entry = {key: value for key, value in op.options.items() if key in SHARED} | entry
    if "struct" in op.options:
        entry.setdefault("struct", f"{op.options['struct']}Backward")
    name = entry.pop("name", f"{op.name}_backward")
    conditions = entry.pop("where") or op.options["where"]
    structs = tuple(s for s in op.structs if s.values[0].name in {x.name for x in inputs})
    return Op(name, op.family, inputs, outputs, _conditions({"where": conditions}), _dtypes(entry), entry, structs)


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


_STRUCT = re.compile(
    r"(?P<name>\w+)\s+(?P<type>\w+)(?P<many>\[\])?\s*(?P<letters>\[[^\]]*\])?\s*(?:as\s+(?P<place>[\w.-]+))?"
)
_ENTRY = re.compile(
    r"(?P<names>[\w.]+\??(?:\s*,\s*[\w.]+\??)*)\s*(?P<of>\([^)]*\))?\s*(?P<shape>\[[^\]]*\])?(?P<words>[^;]*)",
    re.DOTALL,
)


def _values(text: str, names: Names) -> Iterator[Value | Struct]:
    for entry in _entries(text):
        if entry.startswith("use "):
            yield from _values(names.groups[entry.removeprefix("use ").strip()], names)
            continue
        match = _ENTRY.fullmatch(entry)
        if not match:
            raise DeclarationError(f"cannot read {entry!r}")
        struct = _STRUCT.fullmatch(entry)
        if struct and struct["type"] in names.types:
            yield _struct(struct, names)
        else:
            yield from _entry(match, names)


def _entries(text: str) -> Iterable[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return filter(None, (part.strip() for line in lines for part in line.split(";")))


def _struct(match: re.Match[str], names: Names) -> Struct:
    """`name Type [K = D + Z, ...] as place`, or a list, `name Type[] [...]`."""
    name, place, many = match["name"], match["place"] or match["name"], bool(match["many"])
    members = names.types[match["type"]]
    letters = {letter: letter for letter in letters_of(members)}
    letters |= {key.strip(): value.strip() for key, value in re.findall(r"(\w+)\s*=([^,\]]+)", match["letters"] or "")}
    flat = {
        x.name: replace(x, name=f"{name}_{x.name}", place=f"{place}.{x.field}",
                        shape=tuple(letters.get(d, d) for d in x.shape))
        for x in members
    }  # fmt: skip
    return Struct(name, match["type"], flat, letters, place, many)


def _entry(match: re.Match[str], names: Names) -> Iterator[Value]:
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
            pack = tuple(_flat(_values(" ".join(words).replace("|", ";"), names)))
            words = []
        elif (word in SCALARS and not match["shape"]) or word in LISTS or word in names.enums:
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
