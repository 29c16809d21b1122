"""An agent's update as one CUDA graph: one launch where there were thousands."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastwm.agents.agent import Agent, WriteBack
from fastwm.process import settle

Update = Callable[..., dict[str, Tensor]]
WARM_UP = 3  # updates that run as they are: they make the optimiser's state and load the libraries


def fastest_update(agent: Agent) -> Update:
    """`agent.update` of batches on any device, behind a CUDA graph where the agent is on a GPU and allows it."""
    settle()
    return GraphedUpdate(agent) if agent.capturable and agent.device.type == "cuda" else partial(plain_update, agent)


def plain_update(
    agent: Agent, batch: Mapping[str, Tensor], *, write_back: WriteBack | None = None
) -> dict[str, Tensor]:
    return agent.update({key: value.to(agent.device) for key, value in batch.items()}, write_back=write_back)


class GraphedUpdate:
    """`agent.update`, recorded at the fourth call and replayed from then on.

    Takes what `update` takes, with batches on any device; all must have the shapes and dtypes of the one recorded.
    Replays read the parameters, the optimiser's state and torch's generator where they lie, so checkpoints and
    resumes are those of plain updates; a state dict is loaded before this is made. The metrics lie in the same
    memory at every call.

    Raises:
        ValueError: a batch of another shape than the recorded one's.
    """

    def __init__(self, agent: Agent):
        self.agent, self.calls = agent, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: dict[str, Tensor] = {}
        self.metrics: dict[str, Tensor] = {}
        self.latents: dict[str, Tensor] = {}
        for optimizer in agent.optimizers().values():
            for group in optimizer.param_groups:
                group["capturable"] = True

    def __call__(self, batch: Mapping[str, Tensor], *, write_back: WriteBack | None = None) -> dict[str, Tensor]:
        if self.calls < WARM_UP:
            self.calls += 1
            return self._warm_up(batch, write_back)
        if self.graph is None:
            self._record(batch)
        assert self.graph is not None
        for key, value in batch.items():
            if value.shape != self.batch[key].shape:
                raise ValueError(f"expected {key} {list(self.batch[key].shape)} as recorded, got {list(value.shape)}")
            self.batch[key].copy_(value, non_blocking=True)
        self.graph.replay()
        if write_back is not None and self.latents:
            write_back(batch["index"][1:], self.latents)
        return self.metrics

    def _warm_up(self, batch: Mapping[str, Tensor], write_back: WriteBack | None) -> dict[str, Tensor]:
        """A plain update on a stream of its own, as graphs ask for."""
        stream = torch.cuda.Stream(self.agent.device)
        stream.wait_stream(torch.cuda.current_stream(self.agent.device))
        with torch.cuda.stream(stream):
            metrics = plain_update(self.agent, batch, write_back=write_back)
        torch.cuda.current_stream(self.agent.device).wait_stream(stream)
        return metrics

    def _record(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = {key: value.to(self.agent.device, copy=True) for key, value in batch.items()}
        for optimizer in self.agent.optimizers().values():
            optimizer.zero_grad()  # the graph's gradients lie in its own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.agent.device), torch.cuda.graph(graph):
            self.metrics = self.agent.update(self.batch, write_back=self._keep if "index" in batch else None)
        self.graph = graph

    def _keep(self, index: Tensor, latents: dict[str, Tensor]) -> Any:
        self.latents = latents
