"""A whole DreamerV3 update beside one busy process, and on a quiet machine, in turns.

    python -m bench.busy_neighbour [--size size1m] [--precision bf16] [--rounds 20] [--against CHECKOUT] [--json FILE]

Variants: `fastwm first` is how the command line runs (threads that wait sleep soon), `torch first` is a program that
imports torch before fastwm and leaves OpenMP's default. `--against` measures another built checkout beside this one.
Prints medians in ms, and the ratio of busy to quiet.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from fastwm.info import info, provenance
from fastwm.process import CHOSEN_BY

CHILD = """
import sys, time
{imports}
import torch
from fastwm.agents import DreamerV3, DreamerV3Config
from fastwm.runner import measure
from fastwm.runner.config import TrainConfig, with_presets
from fastwm.runner.graph import fastest_update

config = with_presets(TrainConfig(DreamerV3Config()), "dreamer_v3", [sys.argv[1]]).agent
config.precision = sys.argv[2]
torch.manual_seed(0)
agent = DreamerV3(measure.obs_space("vector"), measure.ACTION, config)
batch, update = measure.synthetic_batch(agent, torch.device("cpu")), fastest_update(agent)
for _ in range(3):
    update(batch)
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    update(batch)
    print(1e3 * (time.perf_counter() - start), flush=True)
"""


class Update:
    """A process that makes one update at a time."""

    def __init__(self, size: str, precision: str, imports: str, root: str | None) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in (*CHOSEN_BY, "OMP_NUM_THREADS")}
        environment["PYTHONPATH"] = root or os.getcwd()
        command = [sys.executable, "-c", CHILD.format(imports=imports), size, precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment, cwd=root)  # fmt: skip
        if self.read() != "ready":
            raise SystemExit("the process that updates did not start; see above")

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def milliseconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="size1m")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--against", help="another checkout, built")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    variants = {"fastwm first": ("import fastwm", None), "torch first": ("import torch", None)}
    if options.against:
        variants["against"] = ("import fastwm", options.against)
    updates = {name: Update(options.size, options.precision, *variant) for name, variant in variants.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"quiet": [], "busy": []} for name in updates}
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            for _ in range(options.rounds):
                for machine, signal_number in (("quiet", signal.SIGSTOP), ("busy", signal.SIGCONT)):
                    neighbour.send_signal(signal_number)
                    for name, update in updates.items():
                        times[name][machine].append(update.milliseconds())
        finally:
            neighbour.kill()
    for name, t in times.items():
        quiet, busy = statistics.median(t["quiet"]), statistics.median(t["busy"])
        print(f"{name:13s} quiet {quiet:7.1f} ms  busy {busy:7.1f} ms  {busy / quiet:.2f}x")
    if options.json:
        settings = {"size": options.size, "precision": options.precision, "rounds": options.rounds}
        facts = provenance("cpu") | {key: info()[key] for key in ("torch", "isa")}
        options.json.write_text(json.dumps(settings | facts | {"ms": times}, indent=1))


if __name__ == "__main__":
    main()
