"""Settings: dataclasses whose fields are checked whenever they are set, wherever the value comes from."""

import functools
import math
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastwm.errors import FastwmError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless it must be `above` the lower or `below` the upper one."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return not (value < self.low or value > self.high
                    or (self.above and value == self.low) or (self.below and value == self.high))  # fmt: skip

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:,.15g}"
        return low if self.high == math.inf else f"{low} and {'below' if self.below else 'at most'} {self.high:,.15g}"


@dataclass(frozen=True)
class Length(Range):
    """Bounds of a tuple's length."""

    def __contains__(self, value: Any) -> bool:
        return super().__contains__(len(value))

    def __str__(self) -> str:
        return f"a tuple of {super().__str__()} entries"


Count = Annotated[int, Range(1, 2**40)]
Whole = Annotated[int, Range(0, 2**40)]
Width = Annotated[int, Range(1, 2**17)]
Layers = Annotated[int, Range(0, 100)] | Annotated[tuple[Width, ...], Length(0, 100)]
"""Hidden layers: their number, each of a network's `units`, or the width of each."""
Hidden = Annotated[int, Range(1, 100)]  # where a network needs a hidden layer
HiddenLayers = Hidden | Annotated[tuple[Width, ...], Length(1, 100)]
Parallel = Annotated[int, Range(1, 2**16)]  # environments or rows at once
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]


class SettingError(FastwmError):
    """A value that a setting does not take; `path` names the setting from the outermost dataclass on."""

    def __init__(self, owner: type, name: str, wanted: str, value: Any):
        self.owner, self.path, self.wanted, self.value = owner, name, wanted, value

    def inside(self, name: str) -> "SettingError":
        """The same error, of a setting that belongs to the setting `name`."""
        return SettingError(self.owner, f"{name}.{self.path}", self.wanted, self.value)

    def __str__(self) -> str:
        return f"{self.path} must be {self.wanted}, got {self.value!r}"


class Settings:
    """Base of the dataclasses of settings: a value of the wrong type or out of its range raises `SettingError`."""

    def __setattr__(self, name: str, value: Any) -> None:
        hint = hints(type(self)).get(name)  # type: ignore[arg-type]
        if hint is not None and (wanted := mismatch(hint, value)):
            raise SettingError(type(self), name, wanted, value)
        super().__setattr__(name, value)

    def require(self, holds: bool, name: str, wanted: str) -> None:
        """Refuse the setting `name` unless what it must be, given the others, holds."""
        if not holds:
            raise SettingError(type(self), name, wanted, getattr(self, name))


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def fits(settings: Settings, name: str, value: Any) -> bool:
    """Whether the setting `name` takes the value, whatever the others are."""
    return mismatch(hints(type(settings))[name], value) is None  # type: ignore[arg-type]


PLAIN: dict[Any, tuple[type, str]] = {
    int: (Integral, "an integer"), float: (Real, "a finite number"),
    bool: (bool, "true or false"), str: (str, "a string"),
}  # fmt: skip


def mismatch(hint: Any, value: Any) -> str | None:
    """The kind of value that `hint` asks for, where `value` is none; else None."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return mismatch(args[0], value) or next((str(limit) for limit in args[1:] if value not in limit), None)
    if origin in (Union, UnionType):
        kinds = [mismatch(each, value) for each in args]
        return None if None in kinds else " or ".join(kind for kind in kinds if kind)
    if origin is Literal:
        return None if value in args else f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        entries = [mismatch(args[0], entry) for entry in value] if isinstance(value, tuple) else [""]
        return next((f"a tuple of entries {wanted}".strip() for wanted in entries if wanted is not None), None)
    if origin is dict:
        strings = isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)
        return None if strings else "a dictionary of strings"
    if hint in PLAIN:
        kind, wanted = PLAIN[hint]
        fits = isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
        return None if fits and (hint is not float or math.isfinite(value)) else wanted
    if isinstance(hint, type) and issubclass(hint, Settings) and not isinstance(value, hint):
        return f"a {hint.__name__}"
    return None
