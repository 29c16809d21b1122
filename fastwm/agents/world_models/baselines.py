"""Blind policies that any claim must be held against."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.world_models.task import Policy, Record, Task, Uniform

PERIOD = 100


def baselines(task: Task, num_envs: int, seed: int) -> Mapping[str, Policy]:
    """Policies by name, of the controller's kind of action.

    TakeCover: each action equally likely, always left, and left and right in turns of 100 steps. CarRacing: uniform
    actions, and half gas straight on.
    """
    random = Uniform(task, num_envs, np.random.default_rng(seed))
    if task.name == "carracing":
        return {"random": random, "constant gas": Constant([0.0, 0.5, 0.0], num_envs)}
    return {"random": random, "always left": Constant([-1.0], num_envs), "oscillate 100": Oscillate(num_envs)}


class Constant:
    """One action, always."""

    def __init__(self, action: list[float], num_envs: int):
        self.action = torch.tensor(action).expand(num_envs, -1)

    def __call__(self, record: Record) -> Tensor:
        return self.action


class Oscillate:
    """`PERIOD` steps left, `PERIOD` steps right, from every episode's start."""

    def __init__(self, num_envs: int):
        self.step = np.zeros(num_envs, int)

    def __call__(self, record: Record) -> Tensor:
        self.step = np.where(record["is_first"], 0, self.step + 1)
        return torch.from_numpy(np.where(self.step // PERIOD % 2 == 0, -1.0, 1.0)).float()[:, None]
