"""The two tasks of World Models: how frames come in, how actions go out, what a random policy does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from fastwm.agents.world_models.controller import Squash, squash
from fastwm.errors import FastwmError
from fastwm.nn.conv_vae import SIDE

Record = Mapping[str, np.ndarray]
Policy = Callable[[Record], Tensor]
"""Record `[N, ...]` -> the controller's kind of action `[N, A]`."""

THRESHOLD = 1 / 3
NOOP, RIGHT, LEFT = 0, 1, 2  # EnvPool's combined actions
CAR_ROWS = 84  # of 96; below is the bar of indicators


@dataclass(frozen=True)
class Task:
    """One environment as World Models sees it. Actions are the controller's: what M is told."""

    name: str
    actions: int
    squash: Squash
    restart: bool
    """Whether M has the restart flag as an input."""
    mean_frames: int
    """Frames of a random episode, for estimates."""

    def frames(self, image: Any) -> Tensor:
        """The environment's frames, uint8 `[B, H, W, 3]`, as V sees them, uint8 `[B, 64, 64, 3]`."""
        x = torch.as_tensor(image)
        if self.name == "carracing":
            x = x[:, : CAR_ROWS * x.shape[1] // 96]
        if x.shape[1:3] == (SIDE, SIDE):
            return x
        x = x.permute(0, 3, 1, 2)
        source = x if x.device.type == "cpu" else x.float()
        x = F.interpolate(source, (SIDE, SIDE), mode="bilinear", antialias=True)
        return (x if x.dtype == torch.uint8 else x.round().clamp(0, 255).to(torch.uint8)).permute(0, 2, 3, 1)

    def env_action(self, action: Tensor) -> Tensor:
        """The controller's action `[B, A]` -> what the environment takes.

        TakeCover: left below -1/3, right above 1/3, else still. CarRacing: gas and brake in [0, 1] are stretched
        to the canonical [-1, 1].
        """
        if self.name == "takecover":
            a = action[:, 0]
            still = torch.full_like(a, NOOP, dtype=torch.int64)
            return torch.where(a < -THRESHOLD, LEFT, torch.where(a > THRESHOLD, RIGHT, still))
        return torch.cat([action[:, :1], 2 * action[:, 1:] - 1], -1)


TASKS = {
    "carracing": Task("carracing", actions=3, squash="car", restart=False, mean_frames=1000),
    "takecover": Task("takecover", actions=1, squash="tanh", restart=True, mean_frames=308),
}


def task_of(act_space: spaces.Space) -> Task:
    """The task with these actions; anything else is a FastwmError."""
    if isinstance(act_space, spaces.Discrete) and act_space.n == 3:
        return TASKS["takecover"]
    if isinstance(act_space, spaces.Box) and act_space.shape == (3,):
        return TASKS["carracing"]
    raise FastwmError(f"world_models plays carracing and takecover; actions of {act_space} belong to neither")


def random_policy(kind: str, task: Task, num_envs: int, rng: np.random.Generator) -> Policy:
    """The policy that data are collected with."""
    if kind == "original":
        return (HeldActions if task.name == "takecover" else RandomControllers)(num_envs, rng)
    return RandomWalk(task, num_envs, rng) if kind == "brownian" else Uniform(task, num_envs, rng)


class HeldActions:
    """The public code's for Doom: a uniform action, held.

    At frame f, where f is a multiple of the present hold, both are drawn anew, the hold from 1..10.
    """

    def __init__(self, num_envs: int, rng: np.random.Generator):
        self.rng = rng
        self.frame, self.hold = np.zeros(num_envs, int), np.ones(num_envs, int)
        self.action = np.zeros((num_envs, 1), np.float32)

    def __call__(self, record: Record) -> Tensor:
        self.frame = np.where(record["is_first"], 0, self.frame + 1)
        self.hold = np.where(record["is_first"], 1, self.hold)
        fresh = self.frame % self.hold == 0
        action = self.rng.uniform(-1, 1, self.action.shape).astype(np.float32)
        hold = self.rng.integers(1, 11, len(fresh))
        self.action, self.hold = np.where(fresh[:, None], action, self.action), np.where(fresh, hold, self.hold)
        return torch.from_numpy(self.action.copy())


class RandomControllers:
    """A policy like the public code's random V, M and C for CarRacing: `squash(W z + b)` with z standard normal.

    Every episode draws W and b: Cauchy numbers times a scale, uniform in [0, 0.01].
    """

    def __init__(self, num_envs: int, rng: np.random.Generator, latents: int = 32):
        self.rng, self.latents = rng, latents
        self.params = np.zeros((num_envs, 3, latents + 1))

    def __call__(self, record: Record) -> Tensor:
        shape = self.params.shape
        drawn = self.rng.standard_cauchy(shape) * self.rng.uniform(0, 0.01, (len(self.params), 1, 1))
        self.params = np.where(record["is_first"][:, None, None], drawn, self.params)
        z = self.rng.standard_normal((shape[0], self.latents))
        u = np.einsum("nal,nl->na", self.params[..., :-1], z) + self.params[..., -1]
        return squash(torch.from_numpy(u).float(), "car")


class RandomWalk:
    """ctallec's: uniform at first, then steps of sqrt(1/50) times a normal number, clipped to the box."""

    def __init__(self, task: Task, num_envs: int, rng: np.random.Generator):
        self.rng = rng
        self.low, self.high = action_box(task)
        self.action = np.zeros((num_envs, task.actions), np.float32)

    def __call__(self, record: Record) -> Tensor:
        start = self.rng.uniform(self.low, self.high, self.action.shape)
        moved = self.action + np.sqrt(1 / 50) * self.rng.standard_normal(self.action.shape)
        action = np.where(record["is_first"][:, None], start, moved)
        self.action = np.clip(action, self.low, self.high).astype(np.float32)
        return torch.from_numpy(self.action.copy())


class Uniform:
    """Each step anew, from the whole box."""

    def __init__(self, task: Task, num_envs: int, rng: np.random.Generator):
        self.rng, self.box, self.shape = rng, action_box(task), (num_envs, task.actions)

    def __call__(self, record: Record) -> Tensor:
        return torch.from_numpy(self.rng.uniform(*self.box, self.shape).astype(np.float32))


def action_box(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action [A]."""
    low = np.array([-1.0, 0.0, 0.0]) if task.squash == "car" else -np.ones(task.actions)
    return low, np.ones(task.actions)
