"""Writes C++ from the operators' declarations (fastwm/ops/declarations): params structs, hosts, schema, registrations.

    python build_tools/generate.py FOLDER     write them there, to be read

What a kernel reads is `fastwm/params/<family>.h`, free of torch. A host checks the arguments, allocates the outputs,
fills the params by name and calls the kernel; `hosts/<family>.h` holds it for CPU and CUDA alike.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import ClassVar

ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    """fastwm/ops/declaration.py, without importing fastwm, which needs torch."""
    path = ROOT / "fastwm" / "ops" / "declaration.py"
    spec = importlib.util.spec_from_file_location("fastwm_declaration", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


declaration = _load()
Op, Struct, Value = declaration.Op, declaration.Struct, declaration.Value
OPS, NAMES = declaration.load()
ENUMS = NAMES.enums

SCALARS = {"int": "int64_t", "float": "double", "bool": "bool"}
LISTS = {"int[]": "std::vector<int64_t>", "float[]": "std::vector<double>", "Tensor[]": "std::vector<Tensor>"}
POINTERS = {"bool": "bool", "int64": "int64_t", "float32": "float"}
SCALAR_TYPES = {"bool": "Bool", "int64": "Long", "int32": "Int", "float32": "Float", "float64": "Double",
                "bfloat16": "BFloat16"}  # fmt: skip


# ------------------------------------------------------------------------------------------------- expressions


class Cpp(ast.NodeVisitor):
    """An expression of a declaration in C++: letters by name, tensors as the arguments they came as."""

    OPERATORS: ClassVar = {
        ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%", ast.And: "&&", ast.Or: "||",
        ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    }  # fmt: skip

    def __init__(self, op: Op) -> None:
        self.tensors = {x.name for x in op.tensors}
        enums = [ENUMS[x.kind] for x in op.inputs if x.kind in ENUMS]
        self.enumerators = {name: i for names in enums for i, name in enumerate(names)}

    def visit_Name(self, node: ast.Name) -> str:
        if node.id in self.tensors:
            return f"{node.id}_"
        return str(self.enumerators.get(node.id, node.id))

    def visit_Constant(self, node: ast.Constant) -> str:
        return str(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> str:
        return f"({self.visit(node.left)} {self.OPERATORS[type(node.op)]} {self.visit(node.right)})"

    def visit_BoolOp(self, node: ast.BoolOp) -> str:
        return f"({f' {self.OPERATORS[type(node.op)]} '.join(map(self.visit, node.values))})"

    def visit_UnaryOp(self, node: ast.UnaryOp) -> str:
        return f"{'!' if isinstance(node.op, ast.Not) else '-'}{self.visit(node.operand)}"

    def visit_Compare(self, node: ast.Compare) -> str:
        terms = [node.left, *node.comparators]
        pairs = zip(map(self.visit, terms), node.ops, map(self.visit, terms[1:]))
        return f"({' && '.join(f'{a} {self.OPERATORS[type(o)]} {b}' for a, o, b in pairs)})"

    def visit_Call(self, node: ast.Call) -> str:
        arguments = [self.visit(each) for each in node.args]
        name = ast.unparse(node.func)
        return f"{arguments[0]}.has_value()" if name == "given" else f"{name}({', '.join(arguments)})"

    def generic_visit(self, node: ast.AST) -> str:
        raise declaration.DeclarationError(f"no C++ for {ast.unparse(node)}")


# ------------------------------------------------------------------------------------------------- params structs


def declared(x: Value, output: bool = False) -> str:
    """A value as a member of a struct."""
    if not x.is_tensor:
        return f"{SCALARS.get(x.kind, x.kind)} {x.field};"
    shape = f"[{', '.join(x.shape)}]" + (f" {x.dtype}" if x.dtype != "dtype" else "")
    empty = ", or null" if x.optional or x.when else ""
    pointer = f"{'' if output else 'const '}{POINTERS.get(x.dtype, 'void')}*"
    return f"{'Weight' if x.flags & {'linear', 'blocks'} else pointer} {x.field};  // {shape}{empty}"


def struct(op: Op) -> str:
    """The params of one operator: what is in no member of a type by hand."""
    places = op.options.get("places", {})
    dtypes = [places.get(letter, letter) for letter in op.dtype_bindings()]
    prefix, _, named = op.options.get("sizes", "").rpartition(":")
    letters = named.split() if "sizes" in op.options else op.letters
    fields = [f"{each.strip()};" for each in op.options.get("members", "").split(";") if each]
    fields += [f"Dtype {name};" for name in dtypes if name.isidentifier()]
    fields += [f"int64_t {', '.join(letters)};"] if letters and not prefix else []
    for x in op.structs:
        if x.place == "-":
            continue
        fields += [f"const {x.type}* {x.place};", f"int64_t n_{x.place};"] if x.many else [f"{x.type} {x.place};"]
    new = [*op.outputs, *op.scratch]
    for x in [*op.inputs, *new]:
        skipped = "raw" in x.flags or x.kind in declaration.LISTS or x.name == "save" or x.name in places
        if x.field.isidentifier() and not skipped:
            fields.append(declared(x, x in new))
    if op.options.get("scratch") == "bytes":
        fields.append("void* scratch;")
    return f"struct {op.params} {{\n" + "".join(f"  {line}\n" for line in fields) + "};\n"


def params_header(family: str, ops: list[Op]) -> str:
    parts = [struct(op) for op in ops if not op.options.get("params")]
    held = {op.options["types"]: None for op in ops if "types" in op.options}  # where members' types are, by hand
    include = "".join(f'#include "{path}"\n' for path in held)
    include += '#include "fastwm/params/types.h"\n'
    return f"#pragma once\n\n{include}\nnamespace fastwm {{\n\n" + "\n".join(parts) + "\n}  // namespace fastwm\n"


def types_header() -> str:
    """Enumerations and the types of arguments."""
    text = "".join(f"enum class {name} : int64_t {{ {', '.join(names)} }};\n" for name, names in ENUMS.items())
    for name, members in NAMES.types.items():
        letters = declaration.letters_of(members)
        fields = [f"int64_t {', '.join(letters)};"] if letters else []
        fields += map(declared, members)
        text += f"\nstruct {name} {{\n" + "".join(f"  {line}\n" for line in fields) + "};\n"
    include = '#include "fastwm/dtype.h"\n#include "fastwm/weight.h"\n'
    return f"#pragma once\n\n{include}\nnamespace fastwm {{\n\n{text}\n}}  // namespace fastwm\n"


# ------------------------------------------------------------------------------------------------- hosts


class Host:
    """One operator's host function, line by line."""

    def __init__(self, op: Op) -> None:
        self.op, self.cpp, self.lines = op, Cpp(op), []
        self.shapes: dict[tuple[str, ...], str] = {}

    def write(self, line: str) -> None:
        self.lines.append(f"  {line}\n")

    def expression(self, text: str) -> str:
        return str(self.cpp.visit(declaration.parse(text)))

    def shape(self, dims: tuple[str, ...]) -> str:
        """The name of the local that holds this shape."""
        if dims not in self.shapes:
            self.shapes[dims] = f"shape{len(self.shapes)}"
            parts = [d[1:] if d.startswith("*") else f"Maybe{{{d[:-1]}}}" if d.endswith("?") else self.expression(d)
                     for d in dims]  # fmt: skip
            self.write(f"const Shape {self.shapes[dims]}({', '.join(parts)});")
        return self.shapes[dims]

    def dtype(self, text: str) -> str:
        flag, chosen, name = text.rpartition("?")
        if chosen:
            return f"({flag} ? {self.dtype(name)} : dtype)"
        if name == "wide":
            return f"accumulate_type({next(iter(self.op.dtype_bindings()))})"
        return f"ScalarType::{SCALAR_TYPES[name]}" if name in SCALAR_TYPES else name

    def text(self) -> str:
        op = self.op
        self.bind()
        self.check(op.tensors)
        for x in op.structs:
            if x.many:
                self.read_list(x)
        for line in op.options.get("cpp", []):
            self.write(line)
        self.fill()
        outputs = self.allocate()
        self.call()
        self.write(f"return {outputs[0] if len(outputs) == 1 else '{' + ', '.join(outputs) + '}'};")
        types = [LISTS.get(x.kind, "Tensor") for x in op.outputs]
        returned = types[0] if len(types) == 1 else f"std::tuple<{', '.join(types)}>"
        scratch = f", auto scratch_bytes = no_scratch<{op.params}>"
        arguments = ", ".join(map(self.argument, op.inputs))
        return (
            f"template <auto kernel, bool on_gpu{scratch}>\n{returned} {op.name}({arguments}) {{\n"
            + "".join(self.lines)
            + "}\n"
        )

    @staticmethod
    def argument(x: Value) -> str:
        if x.is_tensor:
            return f"const {'std::optional<Tensor>' if x.optional else 'Tensor'}& {x.name}_"
        return f"{(SCALARS | LISTS).get(x.kind, 'int64_t')} {x.name}"

    def bind(self) -> None:
        """Letters from shapes, dtypes from tensors."""
        op = self.op
        first = next(x for x in op.tensors if not x.optional)
        self.write(f'const Host host{{"{op.name}", {first.name}_}};')
        self.bind_letters(op.bindings())
        for letter, x in op.dtype_bindings().items():
            allowed = ", ".join(f"ScalarType::{SCALAR_TYPES[name]}" for name in op.dtypes)
            self.write(f'const ScalarType {letter} = host.dtype({x.name}_, "{x.name}", {{{allowed}}});')
        for x in op.inputs:
            if x.kind in ENUMS:
                self.write(f'host.enumerator({x.name}, {len(ENUMS[x.kind])}, "{x.name}");')
        for condition in op.conditions:
            value = self.expression(condition.expression)
            if condition.name:
                self.write(f"const int64_t {condition.name} = {value};")
                continue
            scalars = {x.name for x in op.inputs if x.kind in SCALARS}
            shown = sorted(declaration.names_in(condition.expression) & (scalars | {*op.letters}))
            got = "".join(f', "{", " if i else ", got "}{name} = ", {name}' for i, name in enumerate(shown))
            wanted = condition.message or f"expected {condition.expression}"
            self.write(f'STD_TORCH_CHECK({value}, "fastwm: {op.name}: {wanted}"{got});')

    def bind_letters(self, bindings: Iterable[tuple[Value, tuple[str, ...]]]) -> None:
        for x, new in bindings:
            stars = [d for d in x.shape if d.startswith("*")]
            maybe = sum(d.endswith("?") for d in x.shape)
            self.write(f'host.rank({x.name}_, "{x.text}", {len(x.shape) - len(stars) - maybe}, '
                       f"{'kAny' if stars else maybe});")  # fmt: skip
            at = x.shape.index(stars[0]) if stars else len(x.shape)
            for i, d in enumerate(x.shape):
                letter = declaration.bare(d)
                if letter not in new:
                    continue
                where = i if i < at else f"{x.name}_.dim() - {len(x.shape) - i}"
                if d.startswith("*"):
                    self.write(f"const Dims {letter}({x.name}_, {at}, {len(x.shape) - at - 1});")
                elif d.endswith("?"):
                    self.write(f"const int64_t {letter} = {x.name}_.dim() > {i} ? {x.name}_.size({i}) : 0;")
                else:
                    self.write(f"[[maybe_unused]] const int64_t {letter} = {x.name}_.size({where});")

    def check(self, tensors: Iterable[Value]) -> None:
        for x in tensors:
            if "raw" in x.flags:
                continue
            shape, dtype = self.shape(x.shape), self.dtype(x.dtype)
            how = "linear" if "linear" in x.flags else "blocks" if "blocks" in x.flags else "dense"
            self.write(f'const auto {x.name} = host.{how}({x.name}_, "{x.text}", {shape}, {dtype});')

    def read_list(self, x: Struct) -> None:
        """Reads a list of a declared type, whose members came as lists of their own."""
        members = [*x.members.items()]
        self.write(f"std::vector<{x.type}> {x.name}({members[0][1].name}.size());")
        sizes = ", ".join(f"{value.name}.size()" for _, value in members)
        self.write(f'host.lengths("{x.name}", {{{sizes}}});')
        tensors = [value for _, value in members if value.is_tensor]
        if tensors:
            self.write(f"std::vector<Tensor> {x.name}_kept;")
        self.write(f"for (size_t i = 0; i < {x.name}.size(); ++i) {{")
        known = {*self.op.letters}
        shapes = dict(self.shapes)
        for value in tensors:
            self.write(f"const Tensor& {value.name}_ = {value.name}[i];")
        for value, new in Op(self.op.name, "", tensors, [], [], (), {}).bindings():
            self.bind_letters([(value, tuple(d for d in new if d not in known))])
        self.check(tensors)
        for letter, size in x.letters.items():
            self.write(f"{x.name}[i].{letter} = {self.expression(size)};")
        for name, value in members:
            if value.is_tensor:
                self.set(f"{x.name}[i].{name}", value)
                if not value.flags & {"linear", "blocks"}:
                    self.write(f"{x.name}_kept.push_back({value.name});")
                continue
            if value.kind in ENUMS:
                self.write(f'host.enumerator({value.name}[i], {len(ENUMS[value.kind])}, "{x.name}.{name}");')
            self.write(f"{x.name}[i].{name} = static_cast<{SCALARS.get(value.kind, value.kind)}>({value.name}[i]);")
        self.write("}")
        self.shapes = shapes  # those of the loop's body end with it

    def set(self, field: str, x: Value) -> None:
        """Sets a field of a struct to an argument."""
        value = x.name
        if x.is_tensor and not x.flags & {"linear", "blocks"}:
            data = f"data_or_null({x.name})" if x.optional else f"{x.name}.const_data_ptr()"
            value = f"static_cast<const {POINTERS[x.dtype]}*>({data})" if x.dtype in POINTERS else data
        elif x.kind in ENUMS:
            value = f"static_cast<{x.kind}>({x.name})"
        self.write(f"{field} = {value};")

    def fill(self) -> None:
        op = self.op
        self.write(f"{op.params} p{{}};")
        generated = not op.options.get("params")
        prefix, _, named = op.options.get("sizes", "").rpartition(":")
        for letter in op.letters if generated and "sizes" not in op.options else named.split():
            self.write(f"p.{f'{prefix.strip()}.' if prefix else ''}{letter} = {letter};")
        places = op.options.get("places", {})
        for letter in op.dtype_bindings():
            if places.get(letter) != "-":
                self.write(f"p.{places.get(letter, letter)} = dtype_of({letter});")
        for x in op.structs:
            if x.place == "-":
                continue
            if x.many:
                self.write(f"p.{x.place} = {x.name}.data();")
                self.write(f"p.n_{x.place} = {x.name}.size();")
                continue
            for letter, size in x.letters.items():
                self.write(f"p.{x.place}.{letter} = {self.expression(size)};")
        for x in op.inputs:
            field = x.place or places.get(x.name, x.name)
            if field != "-" and x.name != "save" and "raw" not in x.flags and x.kind not in declaration.LISTS:
                self.set(f"p.{field}", x)
        for line in op.options.get("fields", []):
            self.write(f"p.{line};")

    def allocate(self) -> list[str]:
        op = self.op
        given = {x.name: x for x in op.inputs}
        for x in [*op.outputs, *op.scratch]:
            if not x.is_tensor:
                continue
            if x.pack and not x.shape:
                sizes = [" * ".join(f"({self.expression(d)})" for d in part.shape) for part in x.pack]
                size = " + ".join(sizes)
                shape = f"Shape({f'{x.when} * ({size})' if x.when else size})"
            elif x.when and x.shape[0].startswith("*"):
                shape = f"({x.when} ? {self.shape(x.shape)} : Shape(0))"
            elif x.when:
                shape = self.shape((f"{x.when} * ({x.shape[0]})", *x.shape[1:]))
            else:
                shape = self.shape(x.shape)
            if len(x.of) == 1 and x.of[0] in given and given[x.of[0]].optional:
                shape = f"({x.of[0]}_ ? {shape} : Shape(0))"
            how = "zeros" if "zeros" in x.flags else "empty"
            self.write(f"Tensor {x.name} = host.{how}({shape}, {self.dtype(x.dtype)});")
            pointer = POINTERS.get(x.dtype)
            data = f"{x.name}.mutable_data_ptr()"
            data = f"static_cast<{pointer}*>({data})" if pointer else data
            data = f"{x.when} ? {data} : nullptr" if x.when else data
            self.write(f"p.{x.field} = {data};")
        return [x.name for x in op.outputs]

    def call(self) -> None:
        op = self.op
        if op.options.get("scratch") == "bytes":
            self.write("const Tensor scratch = host.empty(Shape(scratch_bytes(p)), ScalarType::Byte);")
            self.write("p.scratch = scratch.mutable_data_ptr();")
        run = f"if ({self.expression(op.options['run'])}) " if "run" in op.options else ""
        self.write(f"{run}kernel(p, host.like.get_device_index());")


def host_header(family: str, ops: list[Op]) -> str:
    own = [f"fastwm/{family}.h"] if (ROOT / "csrc" / "include" / "fastwm" / f"{family}.h").exists() else []
    headers = [op.options["header"] for op in ops if "header" in op.options]
    includes = dict.fromkeys([*own, f"fastwm/params/{family}.h", *headers])
    hosts = "\n".join(Host(op).text() for op in ops if "host" not in op.options)
    by_hand = {op.options["host"]: None for op in ops if "host" in op.options}
    lines = "".join(f'#include "{path}"\n' for path in (*includes, *by_hand, "host_check.h"))
    return f"#pragma once\n\n{lines}\nnamespace fastwm {{\n\n{hosts}\n}}  // namespace fastwm\n"


def registrations(family: str, ops: list[Op], device: str) -> str:
    """The operators of a family on one device."""
    macro, header = ("CPU", "fastwm/isa.h") if device == "cpu" else ("CUDA", "cuda/launch.h")
    served = [op for op in ops if device in op.devices]
    kernels = {op.kernel: op.params for op in served}
    declared = "".join(f"FASTWM_{macro}_KERNEL({name}, {params})\n" for name, params in kernels.items())
    implemented = ""
    for op in served:
        arguments = op.kernel
        if "host" not in op.options:
            arguments += ", true" if device == "cuda" else ", false"
        if device == "cuda" and op.options.get("scratch") == "bytes":
            scratch = op.kernel.replace("_kernel", "_scratch")
            declared += f"namespace cuda {{ int64_t {scratch}(const {op.params}&); }}\n"
            arguments += f", cuda::{scratch}"
        implemented += f'  m.impl("{op.name}", TORCH_BOX((&{op.name}<{arguments}>)));\n'
    return (
        f'#include "hosts/{family}.h"\n#include "{header}"\n\n'
        f"namespace fastwm {{\n\n{declared}\n}}  // namespace fastwm\n\n"
        f"STABLE_TORCH_LIBRARY_IMPL(fastwm, {macro}, m) {{\n  using namespace fastwm;\n{implemented}}}\n"
    )


def schema_source() -> str:
    lines = "".join(f'  m.def("{op.schema}");\n' for op in OPS.values())
    return f"#include <torch/csrc/stable/library.h>\n\nSTABLE_TORCH_LIBRARY(fastwm, m) {{\n{lines}}}\n"


def files() -> dict[str, str]:
    """Every generated file, by its path."""
    out = {"schema.cpp": schema_source(), "fastwm/params/types.h": types_header()}
    for family in dict.fromkeys(op.family for op in OPS.values()):
        ops = [op for op in OPS.values() if op.family == family]
        out[f"fastwm/params/{family}.h"] = params_header(family, ops)
        out[f"hosts/{family}.h"] = host_header(family, ops)
        for device in ("cpu", "cuda"):
            if any(device in op.devices for op in ops):
                out[f"{device}/{family}.cpp"] = registrations(family, ops, device)
    return out


def write(folder: Path) -> None:
    """Writes what changed, so that only that is compiled again, and removes what is no longer declared."""
    note = "// Made by build_tools/generate.py from fastwm/ops/declarations.\n"
    wanted = {folder / path: note + text for path, text in files().items()}
    for old in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
        old.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
