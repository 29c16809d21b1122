"""python -m tests.fuzz --calls N --isa LEVEL --seed S

Each round makes a valid call of an operator of random sizes, with its gradient, compares it with the `ref` backend,
breaks its arguments, and breaks the arguments of every raw operator that it called. Broken calls may raise whatever
they like but not crash. A round depends on seed and number alone: --first repeats it.

Run it in build/sanitized (see `make sanitize`) for a library that finds every access out of bounds.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fastwm
from fastwm import _lib
from tests.cases import CASES
from tests.cases.case import LAYOUTS, lay_out
from tests.cases.run import Recorder
from tests.fuzz.breaking import broken

Call = tuple[Callable[..., Any], tuple[Any, ...]]

_PROPORTIONAL = {"steps", "count"}
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


def run(call: Call) -> list[Tensor]:
    """The outputs of a call, and the gradients of their sum, weighted, by all arguments that have one."""
    function, args = call
    leaves, spec = pytree.tree_flatten(args)
    leaves = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in leaves]
    outputs = [x for x in pytree.tree_leaves(function(*pytree.tree_unflatten(leaves, spec))) if isinstance(x, Tensor)]
    loss = [
        (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in outputs if x.requires_grad
    ]
    if not loss:
        return outputs
    inputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    grads = torch.autograd.grad(sum(loss), inputs, allow_unused=True)
    return [*outputs, *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs))]


def differ(got: list[Tensor], want: list[Tensor], least: float = 0.0) -> bool:
    for a, b in zip(got, want, strict=True):
        tolerance = max(_TOLERANCE.get(a.dtype, 0.0), least)
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True):
            return True
    return False


class Fuzz:
    def __init__(self, seed: int) -> None:
        self.seed, self.count = seed, Counter[str]()

    def round(self, number: int, verbose: bool) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        torch.manual_seed(rng.randrange(2**31))
        torch.set_num_threads(rng.choice([1, 1, 2, 3]))
        dtype = rng.choice([torch.float32, torch.float64])
        name = rng.choice(list(CASES))
        case = CASES[name]
        args = case.args(case.random_sizes(rng), dtype, rng.randrange(2**31))
        call = case.operator, lay_out(args, lambda: rng.choice(["as made", "as made", *LAYOUTS[:3]]))
        with Recorder() as recorder:
            if verbose:
                print(number, name, dtype, flush=True)
            self.valid(number, name, call, dtype)
        for _ in range(4):
            self.refuses(name, rng, call, verbose)
        for op, args, _ in recorder.calls:
            for _ in range(4):
                self.raw(op, list(args), rng, verbose)
        if rng.random() < 0.2 and dtype == torch.float32:
            with torch.autocast("cpu", torch.bfloat16):
                self.refuses(name, rng, call, verbose, breaks=0)

    def valid(self, number: int, name: str, call: Call, dtype: torch.dtype) -> None:
        self.count["compared"] += 1
        try:
            with fastwm.backend("ref"):
                want = run(call)
            got = run(call)
        except Exception as error:
            self.failed(f"round {number}: {name} {dtype}: {error!r}")
            return
        # In float32 a sum's last bit may turn a sample. The rollout's normal numbers are float32.
        sampled = dtype == torch.float32 and ("rssm" in name or "sample" in name or "categorical" in name)
        sampled = sampled or (dtype == torch.float32 and name.startswith("mdn_rnn_imagine"))
        if not sampled and differ(got, want, 1e-4 if name.startswith("mdn_rnn_imagine") else 0.0):
            self.failed(f"round {number}: {name} {dtype} differs from ref")

    def failed(self, message: str) -> None:
        self.count["mismatches"] += 1
        print(message, flush=True)

    def refuses(self, name: str, rng: random.Random, call: Call, verbose: bool, breaks: int = 2) -> None:
        function, args = call
        leaves, spec = pytree.tree_flatten(args)
        for _ in range(breaks and rng.randint(1, breaks)):
            i = rng.randrange(len(leaves)) if leaves else 0
            if leaves:
                few = isinstance(leaves[i], int) and name.startswith(("philox", "mdn_rnn"))
                leaves[i] = broken(rng, leaves[i], few)
        if verbose:
            print("  public", [describe(x) for x in leaves], flush=True)
        try:
            run((function, pytree.tree_unflatten(leaves, spec)))
            self.count["broken, served"] += 1
        except ValueError:
            self.count["broken, refused"] += 1
        except Exception as error:
            self.count["broken, refused by torch"] += 1
            if verbose:
                print(f"  {name} {type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r}")

    def raw(self, op: Any, args: list[Any], rng: random.Random, verbose: bool) -> None:
        names = [argument.name for argument in op._schema.arguments]
        for _ in range(rng.choice([1, 1, 2, 3])):
            i = rng.randrange(len(args))
            args[i] = broken(rng, args[i], names[i] in _PROPORTIONAL)
        if verbose:
            print("  raw", op, [describe(x) for x in args], flush=True)
        try:
            with torch.no_grad():
                op(*args)
            self.count["raw, served"] += 1
        except Exception:
            self.count["raw, refused"] += 1

    def calls(self) -> int:
        return sum(self.count.values()) - self.count["mismatches"]


def describe(x: Any) -> Any:
    if isinstance(x, Tensor):
        return f"{list(x.shape)}:{str(x.dtype)[6:]}:{x.layout if x.layout != torch.strided else list(x.stride())}"
    return [describe(each) for each in x] if isinstance(x, list) else x


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="calls in all, broken ones included")
    parser.add_argument("--isa", help="instruction set level; all that this CPU has, in turn, if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--verbose", action="store_true", help="print every call before it is made")
    options = parser.parse_args()
    if _lib.host is None:
        sys.exit("fuzz: the native library is not built")
    levels = [options.isa] if options.isa else _lib.host.isa_levels()
    failed = False
    for level in levels:
        _lib.host.set_isa(level)
        fuzz, number = Fuzz(options.seed), options.first
        while fuzz.calls() < options.calls / len(levels):
            fuzz.round(number, options.verbose)
            number += 1
            if number % 100 == 0:
                print(f"round {number}, {fuzz.calls()} calls", file=sys.stderr, flush=True)
        facts = ", ".join(f"{name} {count}" for name, count in sorted(fuzz.count.items()))
        print(
            f"{level}, seed {options.seed}: {fuzz.calls()} calls in {number - options.first} rounds: {facts}",
            flush=True,
        )
        failed = failed or fuzz.count["mismatches"] > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
