"""A disk that fills up half-way through any file of any run: one line, nothing left over, nothing lost."""

import contextlib
import fnmatch
import functools
import io
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastwm.agents import AGENTS
from fastwm.cli import main
from fastwm.replay import Replay
from fastwm.runner import checkpoint
from tests.agents_under_test import TINY
from tests.kills import command, forked, warm_up

TAKES = 20  # bytes of the file at hand
RUN = [
    "tmp-config.yaml", "tmp-metrics.jsonl", "metrics.jsonl", "agent.safetensors", "state.json", "state.safetensors",
    "meta.json", "tmp-tail.safetensors", "tmp-chunk-*.safetensors", "tmp-returns.png", "tmp-imagination.png",
]  # fmt: skip
OF_THE_AGENT = ["agent.safetensors", "state.json", "state.safetensors", "tmp-imagination.png"]  # the rest is the loop's
STAGED = [
    "tmp-config.yaml", "image.npy", "rows.npz", "collect/tmp-metrics.jsonl", "collect/metrics.jsonl", "tmp-done.json",
    "v/metrics.jsonl", "v/checkpoints/*/agent.safetensors", "v/checkpoints/*/state.json", "run/checkpoints/*/meta.json",
    "encode/tmp-*.npz", "m/checkpoints/*/state.safetensors", "c/metrics.jsonl", "c/checkpoints/*/meta.json",
]  # fmt: skip
QUICK = ["--agent.collect.episodes", "4", "--agent.v.steps", "2", "--agent.m.steps", "2", "--agent.c.generations", "2"]


class Disk:
    """Files that match `full` take a few bytes and no more, by a limit of this process."""

    def __init__(self) -> None:
        self.full, self.hit = "", False
        sys.addaudithook(self.opened)
        save_file = checkpoint.save_file

        def save(tensors: Any, path: Path) -> None:  # written by Rust, which Python does not see open the file
            self.opened("open", (str(path), "w", 0))
            save_file(tensors, path)

        checkpoint.save_file = save

    def opened(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and self.full and isinstance(args[1], str) and args[1][0] in "wax":
            path = os.fsdecode(args[0]) if not isinstance(args[0], int) else ""
            if fnmatch.fnmatch(path, f"*/{self.full}"):
                self.hit = True
                self.limit(TAKES)

    def limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    @contextlib.contextmanager
    def full_for(self, pattern: str) -> Iterator[None]:
        self.full, self.hit = pattern, False
        try:
            yield
        finally:
            self.full = ""
            self.limit(resource.RLIM_INFINITY)


def steps_of(logdir: Path) -> dict[Path, int]:
    """The newest checkpoint of the run and of each of its stages, found readable."""
    newest = {folder: checkpoint.newest(folder.parent, lambda path: path) for folder in logdir.rglob("checkpoints")}
    return {folder: int(path.name) for folder, path in newest.items() if path}


def fails_in_order(disk: Disk, logdir: Path, pattern: str, args: list[str], code: int = 2) -> None:
    before, said = steps_of(logdir), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), disk.full_for(pattern):
        status = main(args)
    error = said.getvalue().strip()
    assert disk.hit, f"{pattern} was never written"
    assert status == code and error.startswith("fastwm: error: cannot write ") == (code == 2), (pattern, status, error)
    assert "\n" not in error and ("File too large" in error or not code), (pattern, error)
    left = [str(path) for name in ("tmp-*", "old-*", "lock") for path in logdir.rglob(name)]
    assert not left, (pattern, left)
    after = steps_of(logdir) if before else {}
    assert all(after[folder] >= step for folder, step in before.items()), (pattern, before, after)


def fill_the_disk(name: str, logdir: Path) -> int:
    disk = Disk()
    sys.modules["fastwm.runner.shard"].Replay = functools.partial(Replay, chunk_rows=16)  # type: ignore[attr-defined]
    if name in TINY:
        patterns = list(RUN if name == "dreamer_v3" else OF_THE_AGENT)
        patterns += ["tmp-latent-*.safetensors"] * bool(AGENTS[name].agent.latent_keys)
        runs = [
            command(name, logdir, "--steps", str(60 + 30 * i), "--save-every", "60") for i in range(len(patterns) + 1)
        ]
    else:
        patterns = STAGED
        runs = [command(name, logdir, *QUICK)] * (len(patterns) + 1)
    for pattern, args in zip(patterns, runs):
        fails_in_order(disk, logdir, pattern, args)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(runs[-1]) == 0
    # A score that cannot be kept is still told.
    fails_in_order(disk, logdir, "tmp-eval.json", ["eval", str(logdir), "--episodes", "1"], code=0)
    if name not in TINY:
        fails_in_order(disk, logdir, "tmp-dream.gif", ["dream", str(logdir)])
    return 0


@pytest.mark.parametrize("name", AGENTS)
def test_a_full_disk_costs_no_more_than_the_file_at_hand(name: str, tmp_path: Path) -> None:
    warm_up()
    output = tmp_path / "output"
    with forked(lambda: fill_the_disk(name, tmp_path / "run"), output) as child:  # limits and hooks end with it
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output.read_text()
