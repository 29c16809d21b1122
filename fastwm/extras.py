"""Extras of the installation: a missing one is a single line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastwm.errors import FastwmError

EXTRAS = {
    "agents": ("gymnasium", "envpool", "cma", "tyro", "safetensors", "yaml", "rich", "matplotlib"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "log": ("tensorboardX",),
    "wandb": ("wandb",),
    "view": ("starlette", "uvicorn"),
}
"""Extra -> the modules it installs; the distributions are in pyproject.toml."""


class MissingExtra(FastwmError, ImportError):
    """A part of fastwm needs packages that an extra installs."""


@contextmanager
def needs(extra: str, part: str) -> Iterator[None]:
    """Imports inside, made for `part`, may lack modules of the extra.

    Raises:
        MissingExtra: for such a module. Any other missing module is the usual ImportError.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS[extra]:
            raise
        raise MissingExtra(line(part, module, extra), name=error.name) from error


def line(part: str, module: str, extra: str) -> str:
    return f"{part} needs {module}: pip install 'fastwm[{extra}]'"


class Missing:
    """Stands for a module that is not installed: using a name of it is the error."""

    def __init__(self, module: str, extra: str, part: str) -> None:
        self._error = MissingExtra(line(part, module, extra))

    def __getattr__(self, name: str) -> Any:
        raise self._error
