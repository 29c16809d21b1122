"""World models in PyTorch: fused kernels, the field's modules, and five published agents, whole."""

from importlib import import_module
from typing import Any

from fastwm.process import ends_in_one_line, settle, wait_briefly

wait_briefly()  # OpenMP reads this when torch is loaded

with ends_in_one_line():  # importing torch takes seconds
    from fastwm import _lib, ops, renamed  # noqa: F401  (finds modules by their old paths)
    from fastwm.info import info
    from fastwm.ops import backend

__version__ = "0.1.0"
__all__ = ["backend", "evaluate", "info", "load", "make_env", "ops", "settle", "train"]

_lib.warn_if_missing()


def __getattr__(name: str) -> Any:
    # The agents and their environments are imported by those who use them.
    if name in ("evaluate", "load", "train"):
        return getattr(import_module("fastwm.runner"), name)
    if name == "make_env":
        return import_module("fastwm.envs").make_env
    raise AttributeError(f"module 'fastwm' has no attribute '{name}'")
