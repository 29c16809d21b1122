"""The parts of fastwm: which were built and loaded, which were not, and why."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastwm
from fastwm import _lib, process
from fastwm.errors import FastwmError


def info() -> dict[str, Any]:
    """The facts of this installation, as a flat dictionary of plain values.

    Libraries map to `"loaded"` or to the reason why they are not; versions to a string or None.
    """
    host = _lib.host
    return {
        "fastwm": fastwm.__version__,
        "package": str(Path(_lib.__file__).parent),
        "hides": str(_lib.hidden_install() or "") or None,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "library _C": _lib.problems.get("_C", "loaded"),
        "library _C_cuda": _lib.problems.get("_C_cuda", "loaded"),
        "library _host": _lib.problems.get("_host", "loaded"),
        "triton kernels": _lib.problems.get("triton", "loaded"),
        "built with": host.build_info() if host else None,
        "isa": host.isa() if host else None,
        "isa levels": host.isa_levels() if host else [],
        "threads": torch.get_num_threads(),
        "threads wait": process.waiting(),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "envpool": _version("envpool"),
        "egl": _opens("libEGL.so.1"),
    }


def doctor() -> str:
    """`info()` as a table for people: one fact a line, then what to do about a missing library."""
    facts = info()
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {_show(value)}" for name, value in facts.items()]
    return "\n".join(lines if _lib.has_cpu else [*lines, "", _lib.advice("_C")])


def commit() -> str | None:
    """The commit of the checkout that fastwm is imported from, or that it was built from; `+`: with changes."""
    root = Path(_lib.__file__).parent.parent
    if (root / ".git").exists():
        try:
            run = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
            head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
            return head + "+" * bool(run(["git", "status", "--porcelain", "-uno", "fastwm", "csrc"]).stdout)
        except (OSError, subprocess.CalledProcessError):
            return None
    return (_lib.host.build_info().get("commit") or None) if _lib.host else None


def device_name(device: str = "cpu") -> str:
    """The processor's or the graphics card's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def provenance(device: str) -> dict[str, str | None]:
    """Which fastwm serves float32 tensors on a device: version, commit and library file, to go beside every figure.

    Raises FastwmError where plain PyTorch would serve, unless `FASTWM_BACKEND=ref` asks for it.
    """
    from fastwm.ops import _backend

    served = _backend.select(torch.empty(0, device=device))
    if served is None and os.environ.get("FASTWM_BACKEND") != "ref":
        missing = "_C_cuda" if torch.device(device).type == "cuda" and _lib.has_cpu else "_C"
        raise FastwmError(
            f"nothing to measure: fastwm's library {missing} is not available ({_lib.problems.get(missing)}). "
            f"{_lib.advice(missing)} (FASTWM_BACKEND=ref measures plain PyTorch, under that name)"
        )
    library = _brief(Path(_lib.__file__).parent / served.file) if served else "none: plain PyTorch"
    built = (_lib.host.build_info().get("commit") or None) if _lib.host else None
    return {"fastwm": fastwm.__version__, "commit": commit(), "library": library, "library_commit": built}


def _brief(path: Path) -> str:
    """A path without the home folder's name: figures may be published."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return f"{prefix}{path.relative_to(base)}"
    return str(path)


info.doctor = doctor  # type: ignore[attr-defined]  # the function shadows this module in the package: fastwm.info.doctor()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _show(value: Any) -> str:
    match value:
        case None | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
        case dict():
            return ", ".join(f"{key} {item}" for key, item in value.items() if item)
    return str(value)
