"""Kill a random one of two ranks at random moments, many times, and look at what the other does and what is left.

python -m tests.kill_ranks --times 100
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from fastwm.cli import main as command
from fastwm.runner import checkpoint
from fastwm.runner.evaluate import load
from tests.ranks import environment, free_port
from tests.test_runner import FAST


def rank_of(logdir: Path, rank: int, port: int) -> int:
    """Fork a rank of the run, which never ends by itself; returns its process."""
    if child := os.fork():
        return child
    os.environ |= environment(rank, 2, port)
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = (logdir.parent / f"rank{rank}.log").open("w")
    shape = ["--num-envs", "4", "--shards", "2", "--steps", "100000000", "--save-every", "0.2", "--logdir", str(logdir)]
    code = 70
    try:
        code = command(["train", "dreamer_v3", "--env", "cartpole", "--preset", "cartpole", *FAST, *shape])
    finally:
        os._exit(code)


def kill_once(logdir: Path, rng: random.Random) -> tuple[float, int]:
    """Returns how long the survivor took to leave, and its exit code."""
    port, before = free_port(), checkpoint.checkpoints(logdir)[:1]
    children = [rank_of(logdir, rank, port) for rank in range(2)]
    end = time.monotonic() + 200
    while checkpoint.checkpoints(logdir)[:1] == before:
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.01)
    time.sleep(rng.random())
    victim = rng.randrange(2)
    os.kill(children[victim], signal.SIGKILL)
    begun = time.monotonic()
    os.waitpid(children[victim], 0)
    while not (status := os.waitpid(children[1 - victim], os.WNOHANG))[0]:
        if time.monotonic() - begun > 60:
            os.kill(children[1 - victim], signal.SIGKILL)
        time.sleep(0.01)
    return time.monotonic() - begun, os.waitstatus_to_exitcode(status[1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, slowest, failed = random.Random(options.seed), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        logdir = Path(folder, "run")
        for i in range(options.times):
            seconds, code = kill_once(logdir, rng)
            slowest, failed = max(slowest, seconds), failed + (code != 1)
            load(logdir)
            print(
                f"{i + 1}: left after {seconds:.1f} s with {code}, step {checkpoint.checkpoints(logdir)[0].name}",
                flush=True,
            )
    print(f"{options.times} kills: the slowest left after {slowest:.1f} s, {failed} not with 1; each checkpoint loaded")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
