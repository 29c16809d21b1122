"""Old public names, which go on working for one version and say the new one."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """A DeprecationWarning at the caller's caller: `old` is now `new`."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel)


def old_names(module: str, new_names: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__`: each old name answers with the object that has a new one, and a warning."""

    def __getattr__(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = new_names[name]
        warn_renamed(f"{module}.{name}", f"{module}.{new.__name__}")
        return new

    return __getattr__
