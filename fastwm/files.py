"""Reading files that a stranger may have written, or a disk damaged: nothing is believed before it is checked."""

import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastwm.errors import FastwmError

SMALL = 1 << 26  # bytes of a text file that is read whole
SEALED = 1 << 22  # of what `seal` wrote; JSON in memory takes thirty times its bytes
CHECKSUM = "checksum"

Kinds = type | tuple[type, ...]


def regular(path: Path) -> Path:
    """`path` itself, which is a plain file that exists: opening a pipe or a device may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise FastwmError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise FastwmError(f"{path} is not a plain file")
    return path


def read_text(path: Path, limit: int = SMALL) -> str:
    """The text of a plain UTF-8 file of at most `limit` bytes."""
    if (size := regular(path).stat().st_size) > limit:
        raise FastwmError(f"{path} has {size:,} bytes, expected at most {limit:,}")
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise FastwmError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def is_plain(name: str) -> bool:
    """Whether a name stays inside its folder: letters, digits, `_`, `-` and `.` alone, no leading dot."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is not None


def seal(values: Mapping[str, Any]) -> str:
    """JSON of `values` with their checksum."""
    return json.dumps({**values, CHECKSUM: _sum(values)}, indent=1)


def unseal(path: Path, schema: Mapping[str, Kinds], optional: Mapping[str, Kinds] | None = None) -> dict[str, Any]:
    """Read what `seal` wrote to `path`, checked against its checksum and a schema.

    A file without a checksum, of an earlier version, may hold the keys of the schema alone.
    """
    values = read_json(path, SEALED)
    if not isinstance(values, dict):
        raise FastwmError(f"{path} is damaged: expected an object")
    saved = values.pop(CHECKSUM, None)
    if saved is not None and saved != _sum(values):
        raise FastwmError(f"{path} is damaged: its checksum is wrong")
    optional = optional or {}
    check(values, {**schema, **{key: kind for key, kind in optional.items() if key in values}}, str(path))
    if saved is None and (unknown := values.keys() - schema.keys() - optional.keys()):
        raise FastwmError(f"{path} is damaged: unknown key {min(unknown)!r}")
    return values


def read_json(path: Path, limit: int = SMALL) -> Any:
    try:
        return json.loads(read_text(path, limit))
    except (ValueError, RecursionError) as error:
        raise FastwmError(f"{path} is damaged: it is not JSON ({error})") from error


def check(values: Mapping[str, Any], schema: Mapping[str, Kinds], where: str) -> None:
    """Every key of the schema is there, with a value of its type; True is no integer."""
    for key, kinds in schema.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if key not in values:
            raise FastwmError(f"{where} is damaged: {key!r} is missing")
        if type(values[key]) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise FastwmError(f"{where} is damaged: {key!r} is {type(values[key]).__name__}, expected {wanted}")


def check_folder(folder: Path, trust: bool = False) -> None:
    """A folder of strangers may not lead out of itself: no link to elsewhere, no pipe, no device.

    With `trust` links are followed wherever they go.
    """
    home = folder.resolve()
    for where, folders, names in os.walk(home):
        for path in (Path(where, name) for name in (*folders, *names)):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # the run at work has just finished that file
                continue
            if stat.S_ISLNK(mode):
                if not trust and not _inside(path, home):
                    raise FastwmError(
                        f"{path} is a link out of the run's folder, to {os.readlink(path)}: remove it, or add --trust"
                    )
            elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise FastwmError(f"{path} is neither a file nor a folder: remove it")


def _inside(link: Path, home: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return False


def _sum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
