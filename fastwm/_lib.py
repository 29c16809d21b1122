"""Loads the native libraries once and remembers why one did not load."""

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

_HERE = Path(__file__).parent

problems: dict[str, str] = {}  # library -> why it is not there


def _load(name: str) -> bool:
    path = _HERE / f"{name}.so"
    if not path.exists():
        problems[name] = "not built"
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        problems[name] = str(error.__cause__ or error)  # torch's own error does not say why
        return False
    return True


def _load_host() -> ModuleType | None:
    if not has_cpu:
        problems["_host"] = "needs _C"
        return None
    try:
        return importlib.import_module("fastwm._host")
    except ImportError as error:
        problems["_host"] = str(error)
        return None


def _find_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        problems["triton"] = "not installed"
    elif torch.version.cuda is None and os.environ.get("TRITON_INTERPRET") != "1":
        problems["triton"] = "torch is a CPU build and TRITON_INTERPRET=1 was not set before importing fastwm"
    return "triton" not in problems


def _load_cuda() -> bool:
    if torch.version.cuda is None:
        problems["_C_cuda"] = "torch is a CPU build"
        return False
    return has_cpu and _load("_C_cuda")  # _C holds the schemas


has_cpu = _load("_C")
has_cuda = _load_cuda()
has_triton = _find_triton()
host = _load_host()


def _force_isa() -> None:
    level = os.environ.get("FASTWM_ISA")
    if level and host is None:
        raise ValueError(f"FASTWM_ISA={level}, but the native library is missing ({problems['_host']})")
    if level and host is not None:
        try:
            host.set_isa(level)
        except ValueError as error:
            raise ValueError(f"FASTWM_ISA: {error}") from None


_force_isa()


def hidden_install() -> Path | None:
    """The package folder of a built fastwm later on sys.path, if the imported one is not built."""
    if has_cpu:
        return None
    folders = [Path(entry or ".").resolve() / "fastwm" for entry in sys.path]
    return next((folder for folder in folders if folder != _HERE and (folder / "_C.so").exists()), None)


def advice(missing: str) -> str:
    """Advice for a library that is not available."""
    source, other = _HERE.parent, hidden_install()
    build = f"pip install --no-build-isolation -e {source}"
    if other:
        return (
            f"{source} is not built and hides the fastwm installed in {other.parent}. Use another folder, or: {build}"
        )
    if problems[missing] == "not built" and (source / "csrc").is_dir():
        return f"This is a source tree; build it: {build}"
    return "Install a C++ compiler (nvcc for CUDA), then: pip install --force-reinstall fastwm"


def warn_if_missing() -> None:
    """One warning, when something that this machine could have used is not there."""
    missing = "_C" if not has_cpu else "_C_cuda" if torch.version.cuda and not has_cuda else None
    if missing:
        instead = "Triton" if missing == "_C_cuda" and has_triton else "plain PyTorch"
        warnings.warn(
            f"fastwm's native library {missing} is not available ({problems[missing]}): {instead} serves instead, "
            f"more slowly. {advice(missing)}",
            stacklevel=3,
        )
