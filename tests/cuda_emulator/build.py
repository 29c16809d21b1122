"""Compiles csrc/cuda for the emulator: the kernels' own text, but for the launch syntax and the library's name.

`python tests/cuda_emulator/build.py` prints the library's path; with FASTWM_CUDA_EMULATOR set to it, backend "cuda"
serves CPU tensors.
"""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "build_tools"))

import native  # noqa: E402

QUIET = ("unknown-pragmas", "unused-variable", "unused-function", "sign-compare")
# A GPU takes no access that is not aligned to its own size.
ALIGNED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
FLAGS = ("-O1", f"-I{HERE}", "-fno-strict-aliasing", *ALIGNED, *(f"-Wno-{warning}" for warning in QUIET))


def translate(text: str) -> str:
    """CUDA's syntax in C++; the operators go to a library of their own, on the CPU."""
    text = re.sub(r"<<<(.*?)>>>(?=\()", r" % emulated::Config(\1)", text, flags=re.DOTALL)
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];",
        r"\1* const \2 = reinterpret_cast<\1*>(emulated::dynamic_shared());",
        text,
    )
    text = text.replace('"cuda/launch.h"', '"launch.h"')
    text = text.replace("STABLE_TORCH_LIBRARY(fastwm,", "STABLE_TORCH_LIBRARY(fastwm_emulated,")
    return text.replace("STABLE_TORCH_LIBRARY_IMPL(fastwm, CUDA,", "STABLE_TORCH_LIBRARY_IMPL(fastwm_emulated, CPU,")


def write(path: Path, text: str) -> None:
    """Only what changed, so that only that is compiled again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def build(work: Path = ROOT / "build" / "emulated") -> Path:
    cxx, torch = native.find_compiler(), native.find_torch()
    if cxx is None or torch is None or "x86_64" not in native.sysconfig.get_platform():
        raise native.BuildError("the emulator needs torch and a C++ compiler on x86-64")
    hosts, kernels = native.cuda_sources()
    headers = [path for path in (native.CSRC / "cuda").iterdir() if path.suffix in (".h", ".cuh")]
    texts = {source.name: source for source in (*headers, *hosts)}
    texts |= {f"{source.stem}.cu.cpp": source for source in kernels}
    texts["schema.cpp"] = native.GENERATED / "schema.cpp"
    for name, source in texts.items():
        if name != "launch.h":
            write(work / "src" / name, translate(source.read_text()))
    for name in ("launch.h", "emulator.cpp"):
        write(work / "src" / name, (HERE / name).read_text())
    for stale in set((work / "src").iterdir()) - {work / "src" / name for name in (*texts, "launch.h", "emulator.cpp")}:
        stale.unlink()
    tools = native.Toolchain(cxx, torch, work)
    steps = []
    for source in sorted((work / "src").glob("*.cpp")):
        output = work / "objects" / f"{source.name}.o"
        command = [cxx, *native.CXX_FLAGS, *native.DEFINES, *FLAGS, *tools.includes, "-MMD", "-c", str(source)]
        steps.append(native.Step(output, [*command, "-o", str(output)]))
    native.run_parallel(steps)
    libtorch = [f"-L{torch.path / 'lib'}", "-ltorch", "-ltorch_cpu"]
    fresh = work / "_C_cuda_emulated.so.new"
    native.link([cxx], fresh, steps, *libtorch)
    return Path(shutil.move(fresh, work / "_C_cuda_emulated.so"))


if __name__ == "__main__":
    print(build())
