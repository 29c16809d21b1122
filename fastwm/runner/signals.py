"""Leaving in order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def signals(run: Any, patient: bool = False) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set `run.stop`; a second SIGINT or SIGTERM acts as usual, unless `patient`.

    A closed terminal sends SIGHUP more than once, so a second one does not end the save. Under nohup it is ignored.
    Processes of a torchrun are patient: the terminal and torchrun both tell them.
    """
    previous: dict[int, Any] = {}

    def handle(number: int, _: FrameType | None) -> None:
        run.stop = f"stopped by {signal.Signals(number).name}"
        if not patient:
            restore(signal.SIGINT, signal.SIGTERM)

    def restore(*numbers: int) -> None:
        for number in numbers:
            signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: the caller's handlers stay
        pass
    try:
        yield
    finally:
        restore(*previous)
