"""Runs that come with the package, by the name `pretrained:NAME`: weights in float16, without optimiser and replay."""

from importlib import resources
from pathlib import Path

from fastwm.errors import FastwmError

PREFIX = "pretrained:"
FOLDER = Path(str(resources.files("fastwm"))) / "pretrained"


def names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def locate(run: str | Path) -> Path:
    """The folder of a run: a path, with `~` for the home folder, or `pretrained:NAME`.

    Raises:
        FastwmError: for a name that does not exist.
    """
    name = str(run).removeprefix(PREFIX)
    if name == str(run):
        return Path(run).expanduser()
    if name not in names():
        raise FastwmError(f"there is no pretrained {name!r}; there is: {', '.join(names())}")
    return FOLDER / name


def is_pretrained(folder: Path) -> bool:
    """Whether a run's folder belongs to the package, and is not written to."""
    return folder.parent == FOLDER


def card(name: str) -> str:
    """Command, commit and score of a pretrained run, as Markdown."""
    return (locate(f"{PREFIX}{name}") / "card.md").read_text()
