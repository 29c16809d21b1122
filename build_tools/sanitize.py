"""Builds the CPU library with the address and undefined behaviour sanitizers and makes random calls of it.

    python build_tools/sanitize.py [options of tests/fuzz]

build/sanitized holds a package `fastwm` whose Python files are links into the checkout and whose library is the
sanitized one: a process started there imports it, and the checkout stays as it is.
"""

import os
import subprocess
import sys
from pathlib import Path

import native

SANITIZED = native.ROOT / "build" / "sanitized"
# Left out is what AddressSanitizer or the processor finds anyway: it takes half the compilation.
FOUND_ANYWAY = "null,object-size,pointer-overflow,vptr,nonnull-attribute,returns-nonnull-attribute"
FLAGS = (
    "-O0",
    "-g1",
    "-w",
    "-fsanitize=address,undefined",
    f"-fno-sanitize={FOUND_ANYWAY}",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)


def link_package(package: Path) -> None:
    """Links all of the checkout's package but its native libraries into `package`."""
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        if old.is_symlink():
            old.unlink()
    for entry in (native.ROOT / "fastwm").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)


def build() -> native.Toolchain:
    torch, cxx = native.find_torch(), native.find_compiler()
    if torch is None or cxx is None:
        raise native.BuildError("the sanitizers' build needs torch and a C++ compiler")
    link_package(SANITIZED / "fastwm")
    tools = native.Toolchain(cxx, torch, SANITIZED / "objects", FLAGS)
    hosts, kernels = native.cpu_sources()
    cpu = [tools.compile_hosts(hosts)]
    cpu += [step for source in kernels for step in tools.compile_kernel(source)]
    host = tools.compile_host("")
    native.run_parallel([*cpu, host])
    tools.link_cpu(SANITIZED / "fastwm", cpu, host)
    return tools


def environment(cxx: str) -> dict[str, str]:
    """Python itself is not sanitized: the sanitizer's library comes first, and what Python leaks is its own."""
    names = ("libasan.so", "libstdc++.so.6")
    found = [
        subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    return {
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(native.ROOT),  # after the current folder, which is build/sanitized
    }


def main() -> None:
    try:
        tools = build()
    except native.BuildError as error:
        sys.exit(f"fastwm: {error}")
    command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=SANITIZED, env=os.environ | environment(tools.cxx)).returncode)


if __name__ == "__main__":
    main()
