"""Processes that stay, to run functions of the tests as ranks of any number up to theirs."""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 120


class Pool:
    """`run(world, function, *args)` calls `function(group, *args)` in `world` processes and returns their answers."""

    def __init__(self, size: int):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(size):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there,), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        members = range(world)
        self.start(members, function, *args)
        return [self.answer(member) for member in members]

    def start(self, members: range, function: Callable[..., Any], *args: Any) -> None:
        """Begin in these processes, the first as rank 0."""
        port = free_port()
        for rank, member in enumerate(members):
            self.pipes[member].send((environment(rank, len(members), port), function, args))

    def answer(self, member: int) -> Any:
        assert self.pipes[member].poll(SECONDS), f"process {member} hangs"
        failed, value = self.pipes[member].recv()
        assert not failed, value
        return value

    def close(self) -> None:
        for process in self.processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def serve(pipe: Any) -> None:
    import torch

    from fastwm.distributed import ranks

    torch.set_num_threads(1)
    while True:
        variables, function, args = pipe.recv()
        os.environ.update(variables)
        try:
            with ranks() as group:
                pipe.send((False, function(group, *args)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Agents compute in float64, on the reference backend."""
    import torch

    import fastwm
    from fastwm.agents import Agent

    kept = torch.Tensor.float, Agent.check_dtype, torch.get_default_dtype()
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    Agent.check_dtype = lambda self: None  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        with fastwm.backend("ref"):
            yield
    finally:
        torch.Tensor.float, Agent.check_dtype = kept[:2]  # type: ignore[method-assign]
        torch.set_default_dtype(kept[2])
