"""Ctrl-C inside a long operator: it stops within a second, raises KeyboardInterrupt, and leaves the library usable."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fastwm import _lib

pytestmark = pytest.mark.skipif(_lib.host is None, reason="native library not built")

# Each binds `call` to what takes a minute, and every operator of it seconds.
OPERATORS = {
    "rollout": """
Z, H, N = 32, 64, 64
w = ops.MDNRNNWeights(*(torch.randn(s) * 0.1 for s in [(4 * H, Z + 3), (4 * H, H), (4 * H,), (3 * Z, H), (3 * Z,)]))
streams = torch.zeros(N, 2, dtype=torch.int64)
call = lambda: ops.mdn_rnn_imagine(torch.randn(N, Z), torch.randn(1, 3, Z), None, w, streams, 10**7)
""",
    "scan": """
x, h = torch.zeros(4_000, 4, 1), torch.zeros(4, 1024)
call = lambda: [ops.gru_scan(x, h, torch.zeros(3 * 1024, 1), torch.zeros(3 * 1024, 1024)) for _ in range(100)]
""",
    "imagine": """
rssm = nn.RSSM("dreamer_v2", tokens=1, action=1, deter=128, hidden=128, stoch=4)
noise = rssm.noise(30_000, 8)
call = lambda: [rssm.open_loop(rssm.initial(8), torch.zeros(30_000, 8, 1), noise) for _ in range(100)]
""",
}

PROGRAM = """
import signal, sys, threading
import torch
from fastwm import nn, ops
torch.set_num_threads({threads})
torch.set_grad_enabled(False)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
{setup}
print("ready", flush=True)
try:
    call()
except KeyboardInterrupt:
    x = torch.full([3], 2.0)
    assert ops.symexp(ops.symlog(x)).allclose(x)
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_ctrl_c_stops_a_long_operator(name: str, threads: int) -> None:
    program = PROGRAM.format(threads=threads, setup=OPERATORS[name])
    environment = os.environ | {"FASTWM_BACKEND": "", "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped\n"
    assert time.monotonic() - asked < 1
    assert process.wait(20) == 0


HANDLER = """
import signal
import torch
from fastwm import nn, ops
calls = []
signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
{setup}
"""


def test_a_handler_that_does_not_raise_stops_nothing() -> None:
    """A runner that notes the signal and finishes its step gets whole results."""
    setup = OPERATORS["rollout"].replace("10**7", "3_000")
    code = (
        HANDLER.format(setup=setup)
        + "r = call(); signal.setitimer(signal.ITIMER_REAL, 0); assert calls and (r.lengths == 3_000).all()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"FASTWM_BACKEND": ""}
    )
    assert done.returncode == 0, done.stderr
