"""Builds the CPU library with the address and undefined behaviour sanitizers into build/sanitized, for tests/fuzz.py.

The folder holds a package `fastwm` whose Python files are links into the checkout and whose library is the sanitized
one, so that a process started there imports it and the checkout stays as it is.
"""

import sys
from pathlib import Path

import native

SANITIZED = native.ROOT / "build" / "sanitized"
FLAGS = [
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-w",
]


def link_package(package: Path) -> None:
    """Links all of the checkout's package but its own native libraries into `package`."""
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        if old.is_symlink():
            old.unlink()
    for entry in (native.ROOT / "fastwm").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)


def main() -> None:
    package = SANITIZED / "fastwm"
    link_package(package)
    try:
        native.build(package, SANITIZED / "objects", FLAGS, cuda=False)
    except native.BuildError as error:
        sys.exit(f"fastwm: {error}")


if __name__ == "__main__":
    main()
