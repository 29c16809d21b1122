"""The command line: `fastwm train | eval | dream | doctor`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastwm.errors import FastwmError

USAGE = """usage: fastwm COMMAND ...

  train AGENT   train an agent, or continue the run in --logdir   (fastwm train dreamerv3 --help)
  eval LOGDIR   score a trained agent on whole episodes
  dream LOGDIR  draw what its model imagines beside what happened
  doctor        what is installed, what works here, and what does not

agents: {agents}"""


def train(args: Sequence[str]) -> None:
    """`fastwm train AGENT [--env ...] [--preset ...] [--logdir ...] [any setting]`."""
    import tyro

    from fastwm.agents import agent_spec
    from fastwm.runner import config as cfg
    from fastwm.runner.train import train as run

    if not args or args[0].startswith("-"):
        raise FastwmError("train needs an agent: fastwm train dreamerv3 --env cartpole")
    name, args = args[0], args[1:]
    spec = agent_spec(name)
    # What decides the defaults must be known before the settings themselves are read.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--logdir", default="")
    early.add_argument("--preset", nargs="*", default=[])
    known, _ = early.parse_known_args(args)
    default = cfg.TrainConfig(spec.config())
    saved = Path(known.logdir, "config.yaml") if known.logdir else None
    if saved and saved.is_file():
        default = cfg.read_config(saved, default, name)
        if known.preset and tuple(known.preset) != default.preset:
            default = cfg.with_presets(default, name, known.preset)
    else:
        default = cfg.with_presets(default, name, known.preset or cfg.default_preset())
    config: Any = tyro.cli(
        cfg.TrainConfig[spec.config],  # type: ignore[name-defined]
        args=args,
        default=default,
        prog=f"fastwm train {name}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    if not config.env:
        raise FastwmError("no environment given: add --env, for example --env cartpole or --env dmc:walker_walk")
    if not config.logdir:
        config.logdir = f"runs/{name}-{config.env.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
        print(f"logdir: {config.logdir}")
    run(name, config, Path(config.logdir))


def evaluate(args: Sequence[str]) -> None:
    """`fastwm eval LOGDIR [--episodes N] [--seed S] [--device D]`."""
    from fastwm.runner.evaluate import evaluate as run

    parser = argparse.ArgumentParser(prog="fastwm eval", description="Score a trained agent on whole episodes.")
    parser.add_argument("logdir", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the environments and the policy's draws")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(args)
    result = run(options.logdir, options.episodes, options.seed, options.device)
    print(
        f"{result['env']}: mean return {result['mean']:.1f} +- {result['std']:.1f} over {result['episodes']} episodes "
        f"(min {result['min']:.1f}, max {result['max']:.1f}); wrote {options.logdir / 'eval.json'}"
    )


def dream(args: Sequence[str]) -> None:
    """`fastwm dream LOGDIR`."""
    from fastwm.runner.evaluate import dream as run

    parser = argparse.ArgumentParser(
        prog="fastwm dream", description="Draw imagined beside real, from the run's replay."
    )
    parser.add_argument("logdir", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the window that is shown")
    options = parser.parse_args(args)
    print(f"wrote {run(options.logdir, options.seed)}")


def doctor(args: Sequence[str]) -> None:
    """`fastwm doctor`."""
    from fastwm.info import doctor as report

    argparse.ArgumentParser(prog="fastwm doctor", description="What is installed and what works here.").parse_args(args)
    print(report())


COMMANDS = {"train": train, "eval": evaluate, "dream": dream, "doctor": doctor}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for anything the user can mend."""
    logging.basicConfig(format="fastwm: %(levelname)s: %(message)s")
    args = list(sys.argv[1:] if argv is None else argv)
    sys.path.insert(0, os.getcwd())  # so that --env my_module:make_env finds the user's file
    if not args or args[0] in ("-h", "--help"):
        from fastwm.agents import AGENTS

        print(USAGE.format(agents=", ".join(AGENTS)))
        return 0 if args else 2
    try:
        if args[0] not in COMMANDS:
            raise FastwmError(f"unknown command {args[0]!r}; there is: {', '.join(COMMANDS)}")
        COMMANDS[args[0]](args[1:])
    except (FastwmError, argparse.ArgumentError) as error:
        print(f"fastwm: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
