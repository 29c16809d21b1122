"""How much memory a sequence needs, forward and backward, in a process of its own."""

import subprocess
import sys

SCRIPT = """
import resource, sys, torch
import fastwm
torch.set_num_threads(1)
{setup}

def peak(T, B):
    sum(x.sum() for x in sequence(T, B)).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

with fastwm.backend(sys.argv[1]):
    before = peak(1, 1)
    print(peak(64, 16) - before)
"""


def peak_memory(setup: str) -> dict[str, int]:
    """KiB at the peak of T = 64, B = 16, by backend; `setup` defines sequence(T, B), which returns its outputs."""
    command = [sys.executable, "-c", SCRIPT.format(setup=setup)]
    run = lambda name: subprocess.run([*command, name], capture_output=True, text=True, check=True)  # noqa: E731
    return {name: int(run(name).stdout) for name in ("cpu", "ref")}
