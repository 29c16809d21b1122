"""Returns and lengths of the episodes of parallel environments."""

from collections import deque

import numpy as np

from fastwm.envs import Record


class Episodes:
    """Returns and lengths of the running episodes; a length counts decisions."""

    def __init__(self, num_envs: int):
        self.total = np.zeros(num_envs)
        self.length = np.zeros(num_envs, int)
        self.recent: deque[float] = deque(maxlen=20)

    def add(self, record: Record) -> list[tuple[float, int]]:
        """Take in one row of every environment; returns (return, length) of the episodes that end with it."""
        self.total = np.where(record["is_first"], 0, self.total) + record["reward"]
        self.length = np.where(record["is_first"], 0, self.length + 1)
        done = [(float(self.total[i]), int(self.length[i])) for i in np.flatnonzero(record["is_last"])]
        self.recent.extend(value for value, _ in done)
        return done
