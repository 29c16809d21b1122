"""Old public names, which go on working for one version and say the new one."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "fastwm.agents.dreamerv1": ["fastwm.agents.dreamer_v1"],
    "fastwm.agents.dreamerv2": ["fastwm.agents.dreamer_v2"],
    "fastwm.agents.dreamerv3": ["fastwm.agents.dreamer_v3", "fastwm.agents.dreamer_v3_config", "fastwm.agents.results"],
    "fastwm.nn.encoder": ["fastwm.nn.codec"],
    "fastwm.nn.keras": ["fastwm.nn.layers", "fastwm.nn.heads"],
    "fastwm.nn.keras_codec": ["fastwm.nn.codec"],
    "fastwm.runner.process": ["fastwm.process"],
}
"""Old modules, and where what they held is now."""
NAMES = {
    "ConvDecoder": "StridedDecoder", "ConvEncoder": "StridedEncoder", "DenseActor": "Actor", "DenseLayer": "Dense",
    "DenseMLP": "MLP", "LogitHead": "BernoulliHead", "ScalarHead": "Head",
}  # fmt: skip
"""Names that changed on the way."""


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


class _Moved(MetaPathFinder, Loader):
    """Finds a module by its old path, after all other finders, and warns."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        modules = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(modules)}; the old path goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        for name in reversed(modules):  # of two that have a name, the first counts
            module.__dict__.update({key: x for key, x in vars(import_module(name)).items() if not key.startswith("__")})
        for old, new in NAMES.items():
            if new in module.__dict__:
                module.__dict__.setdefault(old, module.__dict__[new])


sys.meta_path.append(_Moved())
