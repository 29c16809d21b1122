"""Compiles every csrc/cuda/*.cu, GPU or not, and prints what ptxas says of each kernel.

Fails on a compile error, and on a spill that the .cu file does not explain by `// spill: <kernel>: <why>`.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from native import DEFAULT_ARCHS, ROOT, cuda_sources, find_nvcc, gencode, nvcc_flags

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    spill: int
    shared: int


def demangle(name: str) -> str:
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    plain = plain.replace("(anonymous namespace)::", "").replace("fastwm::cuda::", "").replace("fastwm::", "")
    return plain.split("(")[0].removeprefix("void ")


def check(nvcc: str, source: Path) -> list[Kernel]:
    with TemporaryDirectory() as scratch:
        command = [nvcc, *nvcc_flags(), *gencode(DEFAULT_ARCHS), "-Xptxas=-v", "-c", str(source)]
        done = subprocess.run([*command, "-o", f"{scratch}/out.o"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.relative_to(ROOT)}: does not compile\n{done.stdout}{done.stderr}")
    kernels = []
    for entry in ENTRY.finditer(done.stderr):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        spill = int(entry["stores"]) + int(entry["loads"])
        shared_bytes = int(shared[1]) if shared else 0
        kernels.append(Kernel(demangle(entry["kernel"]), entry["arch"], int(entry["registers"]), spill, shared_bytes))
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="of csrc/cuda; none: all")
    chosen = [path.resolve() for path in parser.parse_args().files]
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-check: skipped, no nvcc found")
        return
    print(f"CUDA kernels compiled for {DEFAULT_ARCHS}\n")
    print("| file | kernel | arch | registers | spills, bytes | shared, bytes |")
    print("|---|---|---|--:|--:|--:|")
    unexplained = []
    _, sources = cuda_sources()
    if missing := [str(path) for path in chosen if path not in sources]:
        parser.error(f"no CUDA source of csrc/cuda: {', '.join(missing)}")
    sources = chosen or sources
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for source, kernels in zip(sources, pool.map(partial(check, nvcc), sources)):
            explained = re.findall(r"// spill: ([^:\s]+): \S", source.read_text())
            for k in kernels:
                print(f"| {source.name} | {k.name} | {k.arch} | {k.registers} | {k.spill} | {k.shared} |")
                if k.spill and k.name.split("<")[0] not in explained:
                    unexplained.append(f"{source.name}: {k.name} spills {k.spill} bytes on {k.arch}, unexplained")
    if unexplained:
        sys.exit("\n".join(unexplained))


if __name__ == "__main__":
    main()
