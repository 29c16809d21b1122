"""The log of a run: `metrics.jsonl` always, TensorBoard when asked, and a line of progress."""

import errno
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

from fastwm.files import regular
from fastwm.writing import disk_errors, write_text

log = logging.getLogger("fastwm")


class Sink(Protocol):
    """Another place that shows what a run logs."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG or a GIF."""

    def close(self) -> None: ...


class MetricsLog:
    """Append scalars to `metrics.jsonl`, one object a line with its `step`."""

    def __init__(self, logdir: Path, step: int, sinks: Sequence[Sink] = ()):
        self.path, self.sinks = logdir / "metrics.jsonl", sinks
        self._drop_after(step)

    def _drop_after(self, step: int) -> None:
        """A run that was killed may have logged past its last checkpoint: those steps will come again."""
        lines = read_lines(self.path) if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))

    def write(self, step: int, values: dict[str, float]) -> None:
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for sink in self.sinks:
            sink.scalars(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a PNG or a GIF, which is in the run's folder already, where pictures can be shown."""
        for sink in self.sinks:
            sink.picture(step, name, path)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file that are an object of numbers with a step; others are passed over, and counted."""
    lines, broken = [], 0
    with regular(path).open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict) and "step" in line and all(_is_number(value) for value in line.values()):
                lines.append(line)
            else:
                broken += 1
    if broken:
        log.warning("%s: %d of %d lines cannot be read", path, broken, broken + len(lines))
    return lines


def metric_meanings() -> dict[str, Any]:
    """One line for each metric: agent -> metric -> meaning, with the stages of World Models between."""
    meanings: dict[str, Any] = yaml.safe_load(resources.files("fastwm.configs").joinpath("metrics.yaml").read_text())
    return meanings


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Progress:
    """One live line on a terminal, plain lines every `every` seconds elsewhere."""

    def __init__(self, every: float):
        self.every = every
        self.console = Console(file=sys.stdout, highlight=False, emoji=False)
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self.last = -float("inf")

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            with surviving_its_terminal():
                self.live.stop()

    def show(self, text: str) -> None:
        if self.live:
            with surviving_its_terminal():
                self.live.update(Text(text))
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        with surviving_its_terminal():
            self.console.print(text, soft_wrap=True, markup=False)


@contextmanager
def surviving_its_terminal() -> Iterator[None]:
    """A run whose terminal was closed ends by SIGHUP, saved, not by failing to write a line."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
