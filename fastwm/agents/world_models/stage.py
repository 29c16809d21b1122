"""The interface of a stage, and of what it works with."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastwm.agents.finite import FiniteCheck
from fastwm.agents.world_models.agent import WorldModels
from fastwm.agents.world_models.config import WorldModelsConfig
from fastwm.agents.world_models.task import Task
from fastwm.errors import FastwmError
from fastwm.optim import gradient_norms


class Stopped(Exception):
    """A signal came; the stage at hand has saved itself."""


class StageRun(Protocol):
    """A stage's folder and its ways to tell, to save and to be stopped."""

    folder: Path
    seed: int
    env: Any
    env_args: dict[str, Any]

    def say(self, text: str) -> None:
        """A line that stays."""

    def show(self, text: str) -> None:
        """The line of progress."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step, into the stage's `metrics.jsonl`."""

    def due(self, what: str) -> bool:
        """Whether it is time again to "log" or to "save"."""

    def stopping(self) -> bool:
        """Whether a signal asked for an end."""

    def save(self, step: int, module: nn.Module, state: dict[str, Any]) -> None:
        """Write a checkpoint of the stage."""

    def restore(self, module: nn.Module) -> dict[str, Any] | None:
        """Load the newest checkpoint into `module`; the rest of it, or None where there is none."""

    def publish(self, agent: WorldModels, count: int = 0) -> None:
        """Make the agent what `fastwm.load` finds; `count` orders those of one stage."""


class Stage(ABC):
    """One stage of one iteration. `folders` are those of all iterations so far, this one's last."""

    name: str

    def __init__(self, run: StageRun, agent: WorldModels, folders: list[Path]):
        self.run, self.agent, self.folders = run, agent, folders
        self.config: WorldModelsConfig = agent.config
        self.task: Task = agent.task
        self.device = agent.device

    @property
    def iteration(self) -> int:
        return len(self.folders) - 1

    @abstractmethod
    def restore(self) -> bool:
        """Take up what is there; True where nothing is left to do."""

    @abstractmethod
    def work(self) -> None:
        """Do the rest."""

    def rng(self, *key: int) -> np.random.Generator:
        """Numbers of this run, stage and iteration alone."""
        return np.random.default_rng((self.run.seed, self.iteration, zlib.crc32(self.name.encode()), *key))


class Learner(nn.Module):
    """A network with its Adam, as one thing to train and to save."""

    def __init__(self, model: nn.Module, lr: float):
        super().__init__()
        self.model, self.finite = model, FiniteCheck()
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.fused = not self.finite.read_at_once(self.params[0].device)  # which alone can leave out a step by a flag
        self.optimizer = torch.optim.Adam(self.params, lr=lr, eps=1e-8, fused=self.fused)

    def minimize(self, losses: Mapping[str, Tensor], total: Tensor, clip: float = math.inf) -> None:
        """One step down `total`, each gradient's numbers clipped to [-clip, clip].

        Raises:
            FastwmError: for a loss or gradient that is not finite; on a GPU at the next `check_finite`. No weight is
                changed.
        """
        self.optimizer.zero_grad()
        total.backward()
        params = [p for p in self.params if p.grad is not None]
        apply = self.finite(self.model, "all", losses, params, gradient_norms(params))
        if clip < math.inf:
            torch.nn.utils.clip_grad_value_(params, clip)
        if apply is not None:
            self.optimizer.found_inf = (~apply).float()  # type: ignore[attr-defined]
        self.optimizer.step()

    def check_finite(self) -> None:
        self.finite.read(self.model)

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        saved = state["optimizer"]
        groups = [group | {"fused": self.fused} for group in saved["param_groups"]]  # another device may have saved it
        self.optimizer.load_state_dict(saved | {"param_groups": groups})


def fingerprint(module: nn.Module) -> int:
    """A number that changes with the weights: what came of them must not be mixed with what came of others."""
    value = 0
    for tensor in module.state_dict().values():
        if isinstance(tensor, Tensor):
            value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), value)
    return value


def check_same(stage: str, of: str, saved: int, now: int, folder: Path) -> None:
    """A stage goes on only over the weights it began with."""
    if saved != now:
        raise FastwmError(f"{of} has changed since stage {stage} began: remove {folder} to run that stage again")


def check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    if broken := [name for name, value in values.items() if not np.isfinite(value)]:
        raise FastwmError(f"stage {stage} diverged: {', '.join(broken)} not finite at step {step}; nothing was saved")
