"""The options of `fastwm train`, one for each setting, and what is wrong with some that were given."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, get_origin

from fastwm.errors import FastwmError
from fastwm.settings import hints, mismatch

RENAMED = {"--agent.tanh-reward": ["--agent.clip-rewards", "tanh"],
           "--agent.no-tanh-reward": ["--agent.clip-rewards", "identity"]}  # fmt: skip


def options(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """The name of every option and the type of its value: `--agent.imag-length`, `--agent.no-norm`."""
    for field in dataclasses.fields(config):
        name, value = field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{name}.")
            continue
        hint = hints(type(config))[field.name]  # type: ignore[arg-type]
        yield f"{prefix}{name}", hint
        if hint is bool:
            yield f"{prefix}no-{name}", bool


def given(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The options among the arguments, each with its values; the first name is empty, for values before any option."""
    name, values = "", list[str]()
    for arg in args:
        if arg.startswith("--"):
            yield name, values
            head, equals, value = arg.partition("=")
            name, values = head.replace("_", "-"), [value] if equals else []
        else:
            values.append(arg)
    yield name, values


def readings(texts: Sequence[str], hint: Any) -> Iterator[Any]:
    """The values that the texts may stand for: one text itself or a number, several a tuple."""
    for convert in (str, float, int):  # the last says best what is wrong
        with suppress(ValueError):
            values = tuple(convert(text) for text in texts)
            yield values
            if len(values) == 1 and get_origin(hint) is not tuple:
                yield values[0]


def check(config: Any, args: Sequence[str]) -> None:
    """Raises FastwmError for the first option that does not exist, or whose values are not of its type."""
    known = dict(options(config))
    for name, values in given(args):
        if not name:
            if values:
                raise FastwmError(f"expected an option, got {values[0]!r}; options begin with --")
            continue
        if name not in known:
            like = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"; did you mean {like[0]}?" if like else "; --help lists all"
            raise FastwmError(f"no option {name}{hint}")
        hint = known[name]
        if hint is bool:
            if values:
                raise FastwmError(f"{name} takes no value, got {values[0]!r}; --help shows its opposite")
            continue
        if get_origin(hint) is dict:
            continue
        wrong = [mismatch(hint, value) for value in readings(values, hint)]
        if None not in wrong:
            raise FastwmError(f"{name} must be {wrong[-1]}, got {' '.join(values) or 'nothing'}")


def in_new_names(args: Sequence[str]) -> list[str]:
    """The arguments, with options that have a new name under it."""
    return [new for arg in args for new in RENAMED.get(arg.replace("_", "-") if arg.startswith("--") else arg, [arg])]
