"""From when a run learns, and how long it will take."""

import math
from collections import deque
from typing import Any

from fastwm.errors import FastwmError
from fastwm.runner.config import TrainConfig


class Pace:
    """Steps a second while learning, over the last minutes. Steps before the first update are many times as fast."""

    WINDOW = 120.0

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque()  # seconds, step

    def mark(self, step: int, seconds: float) -> None:
        """Updates have just been made. Marks are at least a second apart."""
        if self.marks and seconds - self.marks[-1][0] < 1:
            return
        self.marks.append((seconds, step))
        while len(self.marks) > 2 and seconds - self.marks[1][0] >= self.WINDOW:
            self.marks.popleft()

    def seconds_for(self, steps: int) -> float | None:
        """How long so many steps will take; None as long as nobody can tell."""
        if len(self.marks) < 2:
            return None
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return max(steps, 0) * (end - start) / (last - first)


def duration(seconds: float) -> str:
    """In words: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rows_for_a_batch(c: TrainConfig[Any]) -> int:
    """Rows of replay, all environments together, that hold as many windows as an update replays steps."""
    return (math.ceil(c.batch_size * c.batch_length / c.num_envs) + c.batch_length) * c.num_envs


def first_update(c: TrainConfig[Any], before: int = 0) -> int:
    """The step of the first update (see `Trainer._learn`), where replay began `before` steps after the run."""
    step = _up_to(max(before + rows_for_a_batch(c), c.prefill), c.num_envs)
    return step if step % c.update_every < c.num_envs else _up_to(_up_to(step, c.update_every), c.num_envs)


def _up_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def waiting(c: TrainConfig[Any], step: int, before: int) -> str:
    """Why there are no updates at `step`, and from when; nothing where there are."""
    first = first_update(c, before)
    if step >= first:
        return ""
    if c.prefill >= before + rows_for_a_batch(c):
        reason = f"the first {c.prefill:,} steps are random (prefill)"
    else:
        reason = f"replay must hold {c.batch_size * c.batch_length:,} windows of {c.batch_length + 1} rows first"
    every = f"; then every {c.update_every:,} steps (update_every)" if c.update_every > c.num_envs else ""
    late = f", beyond the {c.steps:,} steps of this run" if first > c.steps else ""
    return f"the first update comes at step {first:,}{late}: {reason}{every}"


def check_learns(c: TrainConfig[Any]) -> None:
    """Refuse settings with which nothing would ever be learnt; a `train_ratio` of 0 says that nothing shall be."""
    if c.train_ratio and c.prefill > c.steps:
        raise FastwmError(
            f"prefill {c.prefill:,} is more than steps {c.steps:,}, so nothing would be learnt: "
            "lower --prefill or raise --steps"
        )
    if c.train_ratio and c.replay_capacity < (rows := rows_for_a_batch(c)):
        raise FastwmError(
            f"replay_capacity {c.replay_capacity:,} is too small to learn from: batches of {c.batch_size} x "
            f"{c.batch_length} steps of {c.num_envs} environments need at least {rows:,} rows"
        )
