"""Leaving in order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def signals(run: Any) -> Iterator[None]:
    """SIGINT and SIGTERM set `run.stop`; a second one of them acts as usual."""
    previous: dict[int, Any] = {}

    def handle(number: int, _: FrameType | None) -> None:
        run.stop = f"stopped by {signal.Signals(number).name}"
        restore()

    def restore() -> None:
        for known, handler in previous.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: the caller's handlers stay
        pass
    try:
        yield
    finally:
        restore()
