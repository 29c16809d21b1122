"""Compiles csrc/ into `fastwm/_C.so`, `fastwm/_C_cuda.so` and `fastwm/_host`, without importing torch.

Adding an operator needs no change here: csrc/cpu/*.cpp, csrc/cuda/*.{cu,cpp} and what generate.py writes are globbed,
and a file named `*_kernel.cpp` is compiled once per CPU instruction set level.

    FASTWM_CUDA=auto|0|1   auto: CUDA where both nvcc and a torch with CUDA are found; 1: fail without nvcc
    TORCH_CUDA_ARCH_LIST   such as "8.0;9.0a+PTX"; else the visible GPU's; else "8.0;9.0a+PTX"
    CXX, NVCC              the compilers; else c++, g++ or clang++ and nvcc on PATH or under CUDA_HOME
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import generate

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
GENERATED = ROOT / "build" / "generated"  # by generate.py

TORCH_TARGET = "2.11"
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
]
CXX_FLAGS += ["-Wno-maybe-uninitialized"]  # GCC's false alarm on an empty std::optional<Tensor>
OPENMP = ["-fopenmp"]

X86_ISA = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
X86_ISA["avx512"] += ["-Wno-uninitialized"]  # GCC 12's false alarm in its own _mm512_reduce_add_*
KERNEL_FLAGS = ["-fno-exceptions"]  # instruction sets would share the symbols of C++'s exceptions
ISA_FLAGS = X86_ISA if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}

DEFAULT_ARCHS = "8.0;9.0a+PTX"


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


def say(message: str) -> None:
    print(f"fastwm: {message}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------- what is here


@dataclass(frozen=True)
class Torch:
    path: Path
    version: str
    cuda: str | None


def find_torch() -> Torch | None:
    """The torch that the result will run with: an importable one, or the one in the target environment."""
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for path in candidates:
        if (path / "include").is_dir() and (path / "lib").is_dir():
            facts = (path / "version.py").read_text()
            version = re.search(r"__version__ = '([^']+)'", facts)
            cuda = re.search(r"^cuda[^=]*= '([^']+)'", facts, re.MULTILINE)
            return Torch(path, version[1] if version else "unknown", cuda[1] if cuda else None)
    return None


def find_compiler() -> str | None:
    return next(filter(None, map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(os.environ.get("NVCC", "nvcc")) or shutil.which(f"{home}/bin/nvcc")


def check_setuptools(version: str) -> None:
    """Older versions refuse pyproject.toml's licence with a page of schema; torch 2.11 and 2.12 may bring one."""
    if int(version.split(".")[0]) < 77:
        raise SystemExit(
            f"fastwm: the build needs setuptools 77 or newer, found {version}: pip install 'setuptools>=77'"
        )


def find_commit() -> str:
    """The commit that is built, with a `+` where csrc has changed since; empty outside a checkout."""
    try:
        run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
        top, head = run(["git", "rev-parse", "--show-toplevel", "--short=12", "HEAD"]).stdout.split("\n")[:2]
        changed = run(["git", "status", "--porcelain", "csrc"]).stdout
    except (OSError, subprocess.CalledProcessError, ValueError):
        return ""
    return head + "+" * bool(changed) if Path(top) == ROOT else ""


def use_cuda(torch: Torch, nvcc: str | None) -> bool:
    wish = os.environ.get("FASTWM_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"FASTWM_CUDA must be auto, 0 or 1, not '{wish}'")
    if wish == "1" and not nvcc:
        raise BuildError("FASTWM_CUDA=1, but nvcc is neither on PATH nor under CUDA_HOME")
    if wish == "auto" and not nvcc:
        say("no nvcc found: building the CPU library only")
    elif wish == "auto" and not torch.cuda:
        say("torch is a CPU build: building the CPU library only")
    return wish == "1" or (wish == "auto" and bool(nvcc and torch.cuda))


def cuda_archs() -> str:
    if archs := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return archs
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = sorted(set(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))
    except (OSError, subprocess.CalledProcessError):
        seen = []
    return ";".join("9.0a" if arch == "9.0" else arch for arch in seen) or DEFAULT_ARCHS


def gencode(archs: str) -> list[str]:
    """nvcc flags of an architecture list: "8.0;9.0a+PTX" is machine code for both, and PTX of the last."""
    flags = []
    for arch in re.split(r"[; ]+", archs.strip()):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            plain = number.rstrip("af")  # PTX of 9.0a runs on Hopper alone, that of 9.0 on what follows too
            flags.append(f"-gencode=arch=compute_{plain},code=compute_{plain}")
    return flags


# ------------------------------------------------------------------------------------------- compile and link


@dataclass(frozen=True)
class Step:
    """One compilation, skipped when the object is newer than all it includes and the command is the same."""

    output: Path
    command: list[str]

    @property
    def depfile(self) -> Path:
        return self.output.with_suffix(".d")

    @property
    def stamp(self) -> Path:
        return self.output.with_suffix(".cmd")

    def is_fresh(self) -> bool:
        if not self.stamp.exists() or self.stamp.read_text() != " ".join(self.command):
            return False
        inputs = map(Path, self.depfile.read_text().split(":", 1)[1].replace("\\\n", " ").split())
        made = self.output.stat().st_mtime
        return all(path.exists() and path.stat().st_mtime <= made for path in inputs)

    def run(self) -> None:
        if self.is_fresh():
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        call(self.command)
        self.stamp.write_text(" ".join(self.command))


def run_parallel(steps: Iterable[Step]) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(Step.run, steps))


def call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)


@dataclass(frozen=True)
class Toolchain:
    cxx: str
    torch: Torch
    work: Path
    extra: tuple[str, ...] = ()  # flags of every C++ compilation and link, after the others

    @property
    def includes(self) -> list[str]:
        api = self.torch.path / "include"
        return [
            f"-I{CSRC}",
            f"-I{CSRC / 'include'}",
            f"-I{GENERATED}",
            f"-isystem{api}",
            f"-isystem{api / 'torch/csrc/api/include'}",
        ]

    @property
    def libtorch(self) -> list[str]:
        return [f"-L{self.torch.path / 'lib'}", "-ltorch", "-ltorch_cpu"]

    def compile(self, source: Path, *flags: str, label: str = "") -> Step:
        for root, folder in ((CSRC, "csrc"), (GENERATED, "generated"), (self.work, ""), (ROOT, "")):
            if source.is_relative_to(root):
                output = self.work / folder / f"{source.relative_to(root).with_suffix('')}{label}.o"
                break
        command = [self.cxx, *CXX_FLAGS, *OPENMP, *DEFINES, *self.includes, *flags, *self.extra]
        return Step(output, [*command, "-MMD", "-c", str(source), "-o", str(output)])

    def compile_hosts(self, sources: list[Path]) -> Step:
        """All of them as one source, since reading torch's headers takes longer than the rest."""
        together = self.work / "hosts.cpp"
        text = "".join(f'#include "{source}"\n' for source in sources)
        if not together.exists() or together.read_text() != text:
            together.parent.mkdir(parents=True, exist_ok=True)
            together.write_text(text)
        return self.compile(together)

    def compile_kernel(self, source: Path) -> list[Step]:
        return [
            self.compile(source, f"-DFASTWM_ISA={isa}", *KERNEL_FLAGS, *flags, label=f".{isa}")
            for isa, flags in ISA_FLAGS.items()
        ]

    def compile_host(self, archs: str) -> Step:
        version = subprocess.run([self.cxx, "--version"], capture_output=True, text=True, check=True).stdout
        facts = {"COMPILER": version.splitlines()[0], "TORCH": self.torch.version, "TORCH_TARGET": TORCH_TARGET}
        facts["COMMIT"] = find_commit()
        flags = [f'-DFASTWM_{name}="{value}"' for name, value in (facts | {"CUDA_ARCHS": archs}).items()]
        return self.compile(CSRC / "host.cpp", f"-isystem{sysconfig.get_path('include')}", *flags)

    def link_cpu(self, destination: Path, cpu: list[Step], host: Step) -> list[Path]:
        """`_C.so` and `_host`."""
        destination.mkdir(parents=True, exist_ok=True)
        linker = [self.cxx, *OPENMP, *self.extra]
        library = link(linker, destination / "_C.so", cpu, *self.libtorch)
        name = f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
        to_native = [f"-L{destination}", "-l:_C.so", "-Wl,-rpath,$ORIGIN"]
        return [library, link(linker, destination / name, [host], *to_native)]

    def compile_cuda(self, source: Path, nvcc: str, archs: str) -> Step:
        output = self.work / f"{source.relative_to(CSRC)}.o"
        command = [nvcc, *nvcc_flags(), *gencode(archs), "-MMD", "-MF", str(output.with_suffix(".d"))]
        return Step(output, [*command, "-c", str(source), "-o", str(output)])


def link(linker: list[str], output: Path, objects: list[Step], *flags: str) -> Path:
    call([*linker, "-shared", *(str(step.output) for step in objects), "-o", str(output), *flags])
    return output


def nvcc_flags() -> list[str]:
    return [
        "-std=c++17",
        "-O3",
        "--compiler-options=-fPIC,-fvisibility=hidden",
        f"-I{CSRC}",
        f"-I{CSRC / 'include'}",
        f"-I{GENERATED}",
    ]


def cpu_sources() -> tuple[list[Path], list[Path]]:
    """The CPU library's host side, and its kernels."""
    generate.write(GENERATED)
    kernels = sorted((CSRC / "cpu").glob("*_kernel.cpp"))
    hosts = sorted(set((CSRC / "cpu").glob("*.cpp")) - set(kernels))
    return [GENERATED / "schema.cpp", *hosts, *sorted((GENERATED / "cpu").glob("*.cpp"))], kernels


def cuda_sources() -> tuple[list[Path], list[Path]]:
    """The CUDA library's host side, and its kernels."""
    generate.write(GENERATED)
    hosts = [*sorted((CSRC / "cuda").glob("*.cpp")), *sorted((GENERATED / "cuda").glob("*.cpp"))]
    return hosts, sorted((CSRC / "cuda").glob("*.cu"))


def build(destination: Path, work: Path) -> list[Path]:
    """Builds every library that this machine can build into `destination`; returns what was built."""
    torch = find_torch()
    if torch is None:
        raise BuildError("torch >= 2.11 is not installed: install it, or build without --no-build-isolation")
    cxx = find_compiler()
    if cxx is None or sys.platform != "linux":
        lacking = "a C++ compiler" if cxx is None else "Linux"
        say(f"the native library needs {lacking}: installing fastwm as pure Python, without it")
        return []
    nvcc = find_nvcc()
    cuda = use_cuda(torch, nvcc)
    archs = cuda_archs() if cuda else ""
    tools = Toolchain(cxx, torch, work / f"torch-{torch.version}")

    hosts, kernels = cpu_sources()
    cpu = [tools.compile_hosts(hosts)]
    cpu += [step for source in kernels for step in tools.compile_kernel(source)]
    host = tools.compile_host(archs)
    gpu = []
    if cuda and nvcc:
        hosts, kernels = cuda_sources()
        gpu += [tools.compile_cuda(source, nvcc, archs) for source in kernels]
        gpu += [tools.compile(source, "-DUSE_CUDA") for source in hosts]
    run_parallel([*gpu, host, *cpu])

    built = tools.link_cpu(destination, cpu, host)
    if cuda and nvcc:
        # Linkers drop libraries whose symbols come by way of others, and torch hides its own from those that do not
        # link it.
        to_cuda = ["-Xlinker=--no-as-needed", *tools.libtorch]
        to_cuda += ["-ltorch_cuda"] if (torch.path / "lib/libtorch_cuda.so").exists() else []
        built.append(link([nvcc, "-cudart=static"], destination / "_C_cuda.so", gpu, *to_cuda))
    say(f"built {', '.join(path.name for path in built)} with {cxx}, torch {torch.version}")
    return built
