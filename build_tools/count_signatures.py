"""Counts the lines that restate operators' signatures.

    python build_tools/count_signatures.py [COMMIT]

Counted are lines by hand that name the arguments of operators: declarations, whole; hosts, with the checks that they
share; registrations; params structs; in Python the checks, fakes, saved tensors, derivatives and the functions that put
arguments in order. Not counted is what works for any operator: the generator and the reader of declarations.
"""

import ast
import re
import subprocess
import sys
from collections import Counter

ROLES = (
    "check shapes fake like wide sizes vmap context derivative setup save keep computed empty operator outputs describe"
)
ORDER = (
    "flatten model_inputs mlp_layers weight_tensors gates norm options policy head_lists readout_outputs fits affine"
)
FUNCTION = re.compile(rf"_?(\w+_)?({'|'.join(ROLES.split())})(_\w+)?|_?({'|'.join(ORDER.split())})")
STRUCT = re.compile(r"(?:^//[^\n]*\n)*^struct \w+ \{\n(?:.*\n)*?\};\n", re.MULTILINE)
FIELD = re.compile(r"^  (?:const )?(?:(?:void|bool|int64_t|float|double) ?\*|Weight )", re.MULTILINE)
GENERIC = ("_declared.py", "declaration.py", "_backend.py")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def count(path: str, text: str) -> tuple[str, int]:
    """The number of lines of one kind in a file."""
    lines = text.count("\n")
    if path.startswith("fastwm/ops/") and path.endswith(".toml"):
        return "declarations", lines
    if path.startswith("csrc/ops/") or path == "csrc/host_check.h":
        return "hosts", lines
    if path.startswith("csrc/") and "STABLE_TORCH_LIBRARY" in text:
        return "registrations", lines
    if path.startswith("csrc/include/"):
        return "structs", sum(struct.count("\n") for struct in STRUCT.findall(text) if FIELD.search(struct))
    if path.startswith("fastwm/ops/") and path.endswith(".py") and not path.endswith(GENERIC):
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        sizes = [(node.end_lineno or 0) - node.lineno + 1 for node in functions if FUNCTION.fullmatch(node.name)]
        return "python", sum(sizes)
    return "", 0


def main() -> None:
    commit = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    total: Counter[str] = Counter()
    for path in git("ls-tree", "-r", "--name-only", commit, "csrc", "fastwm/ops").split():
        kind, lines = count(path, git("show", f"{commit}:{path}"))
        total[kind] += lines
    for kind in sorted(filter(None, total)):
        print(f"{kind:13}{total[kind]:6,}")
    print(f"{'total':13}{total.total():6,}")


if __name__ == "__main__":
    main()
