"""What of fastwm was built, what was loaded, what was not, and why."""

import ctypes
import importlib.metadata
import platform
from typing import Any

import torch

from fastwm import _lib, process


def info() -> dict[str, Any]:
    """The facts of this installation, as a flat dictionary of plain values.

    Libraries map to `"loaded"` or to the reason why they are not; versions to a string or None.
    """
    host = _lib.host
    return {
        "fastwm": _version("fastwm"),
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
    """`info()` as a table for people: one fact a line."""
    facts = info()
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {_show(value)}" for name, value in facts.items())


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
