"""Replaying recorded updates: reading a file, comparing numbers, telling the worst."""

import argparse
import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastwm.agents import Agent
from fastwm.agents.official import load_official, sources

VALUE_TOLERANCE = 1e-4
GRAD_TOLERANCE = 1e-3


@dataclass
class Check:
    """The worst deviation of one quantity, relative to its largest magnitude, and whether it is within bounds."""

    name: str
    error: float
    ok: bool


def within(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Check:
    if ours.shape != theirs.shape:
        return Check(f"{name}: shape {ours.shape} instead of {theirs.shape}", float("inf"), False)
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    error = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
    return Check(name, error, error <= tolerance)


def main(replay: Callable[[Path], list[Check]], what: str) -> int:
    parser = argparse.ArgumentParser(description=f"Replay a golden {what} file and print the worst errors.")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if not args.file.is_file():
        parser.error(f"{args.file} does not exist")
    checks = replay(args.file)
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.error:9.2e}  {check.name}")
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks)} quantities, {failed} beyond tolerance")
    return 1 if failed else 0


class KerasFile:
    """A recording of PlaNet, Dreamer V1 or DreamerV2: batch-major, kernels (in, out) and (h, w, in, out).

    `fastwm.agents.official` tells what every parameter of ours is made of.
    """

    agent: Agent

    def __init__(self, path: str | Path):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.config = ast.literal_eval(str(self.data["config"]))

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.data.items() if key.startswith(prefix)}

    def tensor(self, key: str) -> Tensor:
        value = torch.from_numpy(self.data[key])
        return value.float() if value.is_floating_point() else value

    def rows(self, x: Tensor) -> Tensor:
        """[K, B*T, ...], rows flattened batch-major, to ours: [K, T*B, ...]."""
        return x.unflatten(1, (self.config["B"], -1)).transpose(1, 2).flatten(1, 2)

    def compare(
        self, prefix: str, ours: Mapping[str, Tensor], view: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Iterator[Check]:
        """Values of ours with what is recorded under their names, brought into our layout by `view`."""
        for key, value in ours.items():
            theirs = view(self.tensor(prefix + key))
            yield within(prefix + key, value.detach().numpy(), theirs.numpy(), VALUE_TOLERANCE)

    def load(self, prefix: str) -> None:
        """The recorded parameters, every one of them."""
        load_official(self.agent, self.under(prefix))

    def compare_grads(self, prefix: str, groups: tuple[str, ...]) -> Iterator[Check]:
        params, recorded = dict(self.agent.named_parameters()), self.under(prefix)
        for ours, source in sources(self.agent).items():
            if ours.startswith(groups):
                grad = params[ours].grad
                assert grad is not None
                yield within(prefix + ours, grad.numpy(), source(recorded).numpy(), GRAD_TOLERANCE)

    def compare_params(self, prefix: str, lr: float) -> Iterator[Check]:
        """After an update; where a gradient is rounding noise, Adam may turn it into a part of a step.

        The next update leaves from the recorded parameters, so that no such step is taken for an error of its own.
        """
        params, recorded = dict(self.agent.named_parameters()), self.under(prefix)
        for ours, source in sources(self.agent).items():
            theirs = source(recorded).numpy()
            distance = np.abs(params[ours].detach().numpy() - theirs)
            error = distance / max(np.abs(theirs).max(), 1e-30)
            worst = float(np.quantile(error, 0.99))
            yield Check(prefix + ours, worst, worst <= VALUE_TOLERANCE and bool(distance.max() <= lr))
        self.load(prefix)


def time_major(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
