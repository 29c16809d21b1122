"""Limits of what the folder of a run may ask for: installed environments, and options that name no file."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fastwm.envs import imports_code
from fastwm.errors import FastwmError
from fastwm.runner.config import RunConfig, env_options

LARGEST = {"size|height|width": 1024, "stack": 16, "": 1_000_000}  # pixels, frames of one observation, anything else

FILES = r"(^|_)(path|file|dir|folder|i?wad|xml|cfg|config|roms?|args)(_|$)"  # names of options whose words name files


def check_env(path: Path, config: RunConfig[Any], env: str = "", given: Collection[str] = ()) -> None:
    """Refuse the environment that the settings in `path` name if making it imports code that the user did not name.

    `env` is the environment given on this command line, `given` are the names of its options given there.
    """
    if config.trust:
        return
    if config.env != env and imports_code(config.env):
        raise FastwmError(
            f"{path} names the environment {config.env!r}, which runs code of that module: if you trust it, add --trust"
        )
    for key, value in env_options(config).items():
        largest = next(number for part, number in LARGEST.items() if re.search(part, key))
        harmless = _is_harmless(value, largest) and not (isinstance(value, str) and re.search(FILES, key))
        if key != "keys" and key not in given and not harmless:
            raise FastwmError(
                f"{path} gives the environment {key}={str(value)[:60]!r}, which may name a file or "
                "ask for too much: if you trust it, add --trust"
            )


def _is_harmless(value: Any, largest: int) -> bool:
    """Numbers up to `largest`, flags and plain words: no path, no module, nothing nested."""
    if isinstance(value, str):
        return re.fullmatch("[A-Za-z0-9_-]{0,60}", value) is not None
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) <= largest)
