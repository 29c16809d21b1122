"""Processes that train together: a few collectives over torch.distributed, and one process alone as their null object.

`torchrun` starts the processes, called ranks, and tells each its number by environment variables. All ranks call the
same functions in the same order. Tensors travel by NCCL between GPUs and by gloo between CPUs, words and flags by gloo.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fastwm.errors import FastwmError

FIND = timedelta(seconds=60)
"""How long ranks look for each other at the start."""
WAIT = timedelta(minutes=30)
"""How long a rank waits for one that is connected but does not answer."""


class Lost(FastwmError):
    """Another rank has gone: no collective is possible any more."""

    code = 1


class Elsewhere(FastwmError):
    """Another rank failed, and has said why."""


class Alone:
    """One process: every collective is the identity."""

    rank, world = 0, 1

    def gather(self, x: Tensor) -> Tensor:
        """`x` [n, ...] of all ranks in their order, [world * n, ...]."""
        return x

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all ranks, by one reduction of one flat buffer."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean of `x` over all ranks, with the gradient of this rank's `x`.

        The gradient of a function of the world's mean, averaged over ranks, is then that of the whole batch.
        """
        return x

    def report(self, values: Sequence[float]) -> list[list[float]]:
        """A few numbers of every rank."""
        return [list(values)]

    def words(self, text: str) -> list[str]:
        """A text of every rank."""
        return [text]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks finish before any goes on.

        Where it fails in some, it fails in all: those with an error raise it, the others raise `Elsewhere`.
        """
        yield


class Ranks(Alone):
    """The processes of one `torchrun`."""

    def __init__(self) -> None:
        from torch import distributed

        self.dist: Any = distributed
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def gather(self, x: Tensor) -> Tensor:
        out = x.new_empty((self.world * len(x), *x.shape[1:]))
        with in_contact():
            self.dist.all_gather(list(out.chunk(self.world)), x.contiguous())
        return out

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([x.detach().flatten() for x in tensors])
        with in_contact():
            self.dist.all_reduce(flat)
        parts = (flat / self.world).split([x.numel() for x in tensors])
        for x, part in zip(tensors, parts):
            x.detach().copy_(part.view_as(x))

    def mean(self, x: Tensor) -> Tensor:
        whole = x.detach().clone()
        self.mean_([whole])
        return x + (whole - x.detach())

    def report(self, values: Sequence[float]) -> list[list[float]]:
        return self.gather(torch.tensor([list(values)], dtype=torch.float64)).tolist()

    def words(self, text: str) -> list[str]:
        data = text.encode()
        sizes = [int(size) for (size,) in self.report([len(data)])]
        padded = torch.zeros(1, max(*sizes, 1), dtype=torch.uint8)
        padded[0, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        return [bytes(row[:size].tolist()).decode() for row, size in zip(self.gather(padded), sizes)]

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, Lost) and not hasattr(error, "heard"):
                self._compare(error)
            raise
        self._compare(None)

    def _compare(self, error: Exception | None) -> None:
        """Tell the others how a block ended, and hear it from them; `error.heard` says whether this rank shall print
        it."""
        texts = self.words("" if error is None else str(error) or type(error).__name__)
        failed = [rank for rank, text in enumerate(texts) if text]
        if error is None and failed:
            error = Elsewhere(f"rank {failed[0]}: {texts[failed[0]]}")
            error.heard = False  # type: ignore[attr-defined]
            raise error
        if error is not None:
            error.heard = self.rank == failed[0]  # type: ignore[attr-defined]


ALONE = Alone()
_current: Alone = ALONE


@contextmanager
def in_contact() -> Iterator[None]:
    """Failures of a collective, in words."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise Lost(
            f"rank {os.environ.get('RANK', '?')} lost the others ({first}): see what the first to leave said; "
            "the same command continues from the last checkpoint"
        ) from error


@contextmanager
def ranks() -> Iterator[Alone]:
    """The processes that torchrun started together with this one, or `ALONE`; the same again inside the block.

    Rank 0 alone prints to standard output.

    Raises:
        FastwmError: the others cannot be found, or rank 0's port is taken.
    """
    global _current
    if _current is not ALONE or int(os.environ.get("WORLD_SIZE") or 1) < 2:
        yield _current
        return
    join()
    _current = group = Ranks()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if group.rank else nullcontext():
            yield group
        group.dist.destroy_process_group()
    finally:
        _current = ALONE


def join() -> None:
    from torch import distributed

    if distributed.is_initialized():
        return
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        store, rank, world = next(distributed.rendezvous("env://", timeout=FIND))
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(world)], FIND)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=distributed.PrefixStore("fastwm", store), rank=rank,
            world_size=world, timeout=WAIT,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error).strip()
        if "EADDRINUSE" in text:
            why = "the port is taken: give another --master-port (or MASTER_PORT)"
        elif "imeout" in text or "imed out" in text:
            why = f"not all {os.environ['WORLD_SIZE']} came within {FIND.seconds} s: see what the others said"
        else:
            why = text.splitlines()[0][:200]
        raise FastwmError(f"rank {os.environ['RANK']} cannot meet the others at {address}: {why}") from error


def local_rank() -> int:
    """This process's number among those of its host."""
    return int(os.environ.get("LOCAL_RANK", 0))
