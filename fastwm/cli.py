"""The command line: `fastwm COMMAND ...`; `USAGE` lists the commands."""

import argparse
import dataclasses
import importlib.util
import inspect
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from fastwm.distributed import Alone, ranks
from fastwm.errors import FastwmError
from fastwm.extras import needs
from fastwm.settings import SettingError

USAGE = """usage: fastwm COMMAND ...

  train AGENT   train an agent, or continue the run in --logdir   (fastwm train dreamer_v3 --help)
  eval LOGDIR   score a trained agent on whole episodes; LOGDIR may be pretrained:cartpole
  dream LOGDIR  draw what its model imagines beside what happened
  view LOGDIR   open a page: play in its dreams, watch its agent, its curves, its replay
  act LOGDIR    act for a learner that runs elsewhere (fastwm train ... --actors N)
  import        make a dataset (npz, Minari) a folder to learn from
  export-replay make a run's replay a Minari dataset
  compare       train several agents on one environment and plot them together
  import-checkpoint FILE  make a run's folder from a checkpoint of another code
  export LOGDIR write a run's acting and imagine steps as ONNX or AOTInductor files
  reproduce     run a published benchmark again: curves, scores, pass or fail
  bench [update | FAMILY ...]  measure a whole update, or the operators
  doctor        what is installed, what works here, and what does not

agents: {agents}"""
TRUST = "let the folder name code to import (env: module:factory), and files and links outside of it"


def path(text: str) -> Path:
    """A path, with `~` for the home folder even where the shell left it."""
    return Path(text).expanduser()


def run_path(text: str) -> Path:
    """The folder of a run, or of `pretrained:NAME`."""
    from fastwm.runner.pretrained import locate

    try:
        return locate(text)
    except FastwmError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def train(args: Sequence[str]) -> None:
    """`fastwm train AGENT [--env ...] [--preset ...] [--logdir ...] [any setting]`."""
    with needs("agents", "fastwm train"):
        import tyro  # noqa: F401

    from fastwm.agents import agent_name
    from fastwm.runner.options import in_new_names
    from fastwm.runner.start import start

    if args and args[0] in ("-h", "--help"):
        print(train_help())
        return
    if not args or args[0].startswith("-"):
        raise FastwmError("train needs an agent: fastwm train dreamer_v3 --env cartpole")
    with ranks() as group, group.together():
        name, config = settings(agent_name(args[0]), in_new_names(args[1:]), group)
        start(name, config)


def settings(name: str, args: Sequence[str], group: Alone) -> tuple[str, Any]:
    """The run that the command line of `fastwm train` asks for."""
    import tyro

    from fastwm.agents import agent_spec
    from fastwm.runner.options import check
    from fastwm.runner.start import initial_settings
    from fastwm.runner.trust import check_env

    spec = agent_spec(name)
    # What decides the defaults must be known before the settings themselves are read.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--logdir", default="")
    early.add_argument("--preset", nargs="*", default=[])
    early.add_argument("--env", default="")
    early.add_argument("--trust", action="store_true")
    early.add_argument("--env-args", nargs="*", action="extend", default=[])
    early.add_argument("--keys", nargs="*", action="extend", default=[])
    known, _ = early.parse_known_args(args)
    folder = os.path.expanduser(known.logdir)
    env_args = pairs("env_args", known.env_args)
    default = initial_settings(name, known.env, folder, known.preset, known.trust, env_args)
    for named in ("env_args", "keys"):
        setattr(default, named, getattr(default, named) | pairs(named, getattr(known, named)))
    if not {"-h", "--help"} & {*args}:
        check(default, without_pairs(args))
    try:
        with redirect_stderr(io.StringIO()) if group.rank else nullcontext():
            config: Any = tyro.cli(
                type(default)[spec.config],
                args=without_pairs(args),
                default=default,
                prog=f"fastwm train {name}",
                description=agent_help(name, default),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SettingError as error:
        raise FastwmError(f"{option(default, error)} must be {error.wanted}, got {error.value!r}") from None
    if not config.env and not getattr(config, "offline", ""):
        example = "--env takecover" if spec.stages else "--env cartpole or --env dmc:walker_walk"
        raise FastwmError(f"no environment given: add --env, for example {example}")
    if folder and (saved := Path(folder, "config.yaml")).is_file():
        check_env(saved, config, known.env, known.env_args[::2])
    if not config.logdir:
        config.logdir = f"runs/{name}-{config.env.replace(':', '-') or 'offline'}-{time.strftime('%Y%m%d-%H%M%S')}"
        config.logdir = group.words(config.logdir)[0]  # the clocks of hosts differ
        print(f"logdir: {config.logdir}")
    config.logdir = os.path.expanduser(config.logdir)
    return name, config


def about(agent: str) -> str:
    """The first line of the module that defines an agent: its name and paper."""
    from fastwm.agents import agent_spec

    return (sys.modules[agent_spec(agent).agent.__module__].__doc__ or agent).splitlines()[0]


def train_help() -> str:
    from fastwm.agents import AGENTS

    agents = "\n".join(f"  {name:<13} {about(name)}" for name in AGENTS)
    return (
        "usage: fastwm train AGENT --env ENV [--logdir DIR] [--preset NAME ...] [any setting of the agent]\n\n"
        "Train an agent, or continue the run in --logdir.\n\n"
        f"agents:\n{agents}\n\n"
        "fastwm train AGENT --help lists the agent's presets and all its settings."
    )


def agent_help(name: str, default: Any) -> str:
    """Describe an agent, its presets, and which of them gave the defaults shown."""
    from fastwm.runner.config import preset_blocks

    given = ", ".join(default.preset)
    applied = f"Applied here: {given}" if given else "None is applied here: the defaults are the official numbers"
    presets = f"Presets: {', '.join(preset_blocks(name)) or 'none'}. {applied}."
    return f"{about(name)}\n\n{inspect.getdoc(type(default))}\n\n{presets} Choose others with --preset NAME [NAME ...]."


def pairs(setting: str, values: Sequence[str]) -> dict[str, str]:
    """`NAME VALUE NAME VALUE` as a dictionary, to be added to what is set: tyro would refuse names that are not yet."""
    if len(values) % 2:
        raise FastwmError(f"--{setting.replace('_', '-')} takes pairs of a name and a value, got {' '.join(values)}")
    return dict(zip(values[::2], values[1::2]))


def without_pairs(args: Sequence[str]) -> list[str]:
    """The arguments without `--env-args` and `--keys`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for setting in ("--env-args", "--keys"):
        parser.add_argument(setting, nargs="*", action="extend")
    return parser.parse_known_args(args)[1]


def option(config: Any, error: SettingError) -> str:
    """The option that names the refused setting: `--agent.imag-length`."""
    for group in dataclasses.fields(config):
        inner = getattr(config, group.name)
        if dataclasses.is_dataclass(inner) and (found := option(inner, error)):
            return f"--{group.name}.{found.removeprefix('--')}"
    return f"--{error.path.replace('_', '-')}" if isinstance(config, error.owner) else ""


def evaluate(args: Sequence[str]) -> None:
    """`fastwm eval LOGDIR [--episodes N] [--seed S] [--device D]`."""
    from fastwm.runner.evaluate import MAX_STEPS, film
    from fastwm.runner.evaluate import evaluate as run

    parser = argparse.ArgumentParser(prog="fastwm eval", description="Score a trained agent on whole episodes.")
    parser.add_argument("logdir", type=run_path, help="folder of a run, or pretrained:NAME")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the environments and the policy's draws")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="steps after which an episode is cut off")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True,
                        help="also score the simple policies that belong to the agent, where it has any")  # fmt: skip
    parser.add_argument("--video", action="store_true", help="also film one episode: videos/episode.gif, and .mp4")
    parser.add_argument("--best", action="store_true", help="the best checkpoint by --eval-every, not the newest")
    options = parser.parse_args(args)
    result = run(
        options.logdir, options.episodes, options.seed, options.device, options.baselines, trust=options.trust,
        max_steps=options.max_steps, best=options.best,
    )  # fmt: skip
    cut = f"; {result['cut']} of them cut after {options.max_steps:,} steps (--max-steps)" if result["cut"] else ""
    print(
        f"{result['env']}: mean return {result['mean']:.1f} +- {result['std']:.1f} over {result['episodes']} episodes "
        f"(standard error {result['stderr']:.1f}, min {result['min']:.1f}, max {result['max']:.1f}){cut}"
    )
    for name, score in result.get("baselines", {}).items():
        print(f"  {name}: {score['mean']:.1f} +- {score['std']:.1f} (standard error {score['stderr']:.1f})")
    if options.video:
        paths, total = film(options.logdir, options.seed, options.device, options.trust, options.best)
        print(f"wrote {', '.join(map(str, paths))}: the film shows a return of {total:.1f}")


def dream(args: Sequence[str]) -> None:
    """`fastwm dream LOGDIR`."""
    from fastwm.runner.evaluate import dream as run

    parser = argparse.ArgumentParser(
        prog="fastwm dream", description="Draw imagined beside real, from the run's replay."
    )
    parser.add_argument("logdir", type=run_path, help="folder of a run, or pretrained:NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the window or episode that is shown")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--video", action="store_true", help="also a GIF and an mp4, of agents that see images")
    options = parser.parse_args(args)
    for picture in run(options.logdir, options.seed, options.trust, options.video):
        print(f"wrote {picture}")


def view(args: Sequence[str]) -> None:
    """`fastwm view LOGDIR [--port N] [--no-browser]`."""
    from fastwm.view.serve import view as run

    parser = argparse.ArgumentParser(
        prog="fastwm view",
        description="Open a page of a run on this machine: its world model as a game, an episode of its agent, its "
        "curves, and truth beside dream. Needs the extra `view`.",
    )
    parser.add_argument("logdir", type=run_path, help="folder of a run, or pretrained:NAME")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    options = parser.parse_args(args)
    run(options.logdir, options.port, options.browser, options.trust)


def import_checkpoint(args: Sequence[str]) -> None:
    """`fastwm import-checkpoint FILE --logdir DIR [--env E]`."""
    from fastwm.agents.official_sizes import STOCH
    from fastwm.runner.importing import import_checkpoint as run

    parser = argparse.ArgumentParser(
        prog="fastwm import-checkpoint",
        description="Make a run's folder from a DreamerV3 checkpoint: the official code's agent.pkl, or r2dreamer's "
        "latest.pt. Reading it runs no code of it.",
    )
    parser.add_argument("file", type=path)
    parser.add_argument("--logdir", type=path, required=True, help="folder to be made")
    parser.add_argument("--env", default="", help="environment of the agent; none: spaces as the weights name them")
    parser.add_argument("--env-args", nargs="*", default=[], help="options of the environment, as in fastwm train")
    parser.add_argument("--stoch", type=int, default=STOCH, help="latent variables, which no weight shows")
    parser.add_argument("--vectors", nargs="*", default=[],
                        help="vector observations in the order in which r2dreamer joined them")  # fmt: skip
    options = parser.parse_args(args)
    agent = run(options.file, options.logdir, options.env, options.stoch, options.vectors,
                pairs("env_args", options.env_args))  # fmt: skip
    print(f"dreamer_v3: {sum(p.numel() for p in agent.parameters()):,} parameters in {options.logdir}")
    for what, spaces in (("observation", agent.obs_space), ("action", agent.act_space)):
        for key, space in spaces.items():
            print(f"  {what} {key}: {space}")
    if not options.env:
        print("no environment given: fastwm.load takes the folder, fastwm eval does not")


def export(args: Sequence[str]) -> None:
    """`fastwm export LOGDIR --format onnx|pt2`."""
    from fastwm.runner.export import FORMATS
    from fastwm.runner.export import export as run

    parser = argparse.ArgumentParser(
        prog="fastwm export",
        description="Write a run's acting step and imagine step to its folder export/, with a manifest, and check them "
        "against the agent in their runtime.",
    )
    parser.add_argument("logdir", type=run_path, help="folder of a run, or pretrained:NAME")
    parser.add_argument("--format", choices=FORMATS, required=True,
                        help="onnx (extra `export`), or pt2: AOTInductor, which needs a C++ compiler")  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="length of the check")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    options = parser.parse_args(args)
    *files, manifest = run(options.logdir, options.format, options.trust, options.steps)
    for file in files:
        parity = json.loads(manifest.read_text())["files"][file.name]["parity"]
        print(f"wrote {file}: within {parity['largest_error']:.1e} of the agent over {parity['steps']} steps "
              f"({parity['runtime']})")  # fmt: skip
    print(f"wrote {manifest}")


def act(args: Sequence[str]) -> None:
    """`fastwm act LOGDIR --shard K`."""
    from fastwm.runner.actors import act as run

    parser = argparse.ArgumentParser(
        prog="fastwm act", description="Act for a learner that runs elsewhere: fastwm train ... --actors N."
    )
    parser.add_argument("logdir", type=path, help="folder of the run, which learner and actors share")
    parser.add_argument("--shard", type=int, required=True, help="number of this actor, from 0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for the learner before leaving")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    options = parser.parse_args(args)
    print(run(options.logdir, options.shard, options.device, options.patience, options.trust))


def import_(args: Sequence[str]) -> None:
    """`fastwm import SOURCE DEST`."""
    from fastwm.runner.datasets import import_rows

    parser = argparse.ArgumentParser(
        prog="fastwm import", description="Make a dataset a folder of stored rows, for fastwm train --offline."
    )
    parser.add_argument("source", help="npz:FOLDER, of episode files as Dreamer V1, V2 and NM512's V3 write; minari:ID")
    parser.add_argument("folder", type=path, help="a new folder")
    parser.add_argument("--keys", nargs="*", default=[], help="of Minari: what observations are, as in fastwm train")
    options = parser.parse_args(args)
    count = import_rows(options.source, options.folder, pairs("keys", options.keys))
    print(f"wrote {count:,} rows into {options.folder}; learn from them by --offline {options.folder}")


def export_replay(args: Sequence[str]) -> None:
    """`fastwm export-replay FOLDER minari:ID`."""
    from fastwm.runner.datasets import export_replay as run

    parser = argparse.ArgumentParser(
        prog="fastwm export-replay", description="Write the whole episodes in a run's replay as a Minari dataset."
    )
    parser.add_argument("folder", type=path, help="of a run, or of stored rows")
    parser.add_argument("target", help="minari:ID, such as minari:cartpole/mine-v0")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    options = parser.parse_args(args)
    if not options.target.startswith("minari:"):
        raise FastwmError(f"cannot export to {options.target!r}: give minari:ID, such as minari:cartpole/mine-v0")
    whole, cut = run(options.folder, options.target.removeprefix("minari:"), options.trust)
    print(f"wrote {whole:,} episodes to {options.target}; {cut:,} had no beginning or no end and were left out")


def compare(args: Sequence[str]) -> None:
    """`fastwm compare --env E --agents A,B,... --steps N --logdir DIR`."""
    from fastwm.runner.compare import compare as run

    parser = argparse.ArgumentParser(prog="fastwm compare", description="Train several agents on one environment.")
    parser.add_argument("--env", required=True)
    parser.add_argument("--agents", required=True, help="names, separated by commas")
    parser.add_argument("--steps", type=int, required=True, help="of the environment, repeated actions counted")
    parser.add_argument("--logdir", type=path, required=True, help="a folder an agent inside; the same again continues")
    parser.add_argument("--preset", default="", help="of all agents; else what each has for this environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="train every agent with so many seeds, from --seed on")
    parser.add_argument("--episodes", type=int, default=20, help="of the evaluation after training")
    options = parser.parse_args(args)
    agents = [name.strip() for name in options.agents.split(",") if name.strip()]
    run(options.env, agents, options.steps, options.logdir, options.preset, options.seed, options.episodes,
        options.seeds)  # fmt: skip
    print((options.logdir / "compare.md").read_text())
    print(f"wrote {options.logdir / 'compare.png'}, compare.md and compare.json")


def reproduce(args: Sequence[str]) -> None:
    """`fastwm reproduce SUITE [--tasks ...] [--agents ...] [--seeds N] --logdir DIR`."""
    from fastwm.runner.reproduce import reproduce as run
    from fastwm.runner.reproduce import suites

    parser = argparse.ArgumentParser(
        prog="fastwm reproduce",
        description="Train on a published benchmark, score by its protocol, draw our curves over the published ones, "
        "and pass or fail at its gate (fastwm/configs/reproduce.yaml). The exit code is 1 where a task fails.",
    )
    parser.add_argument("suite", help=", ".join(suites()))
    parser.add_argument("--logdir", type=path, required=True, help="a folder a run inside; the same again continues")
    parser.add_argument("--tasks", nargs="*", default=[], help="such as walker_walk; none: all of the suite")
    parser.add_argument("--agents", nargs="*", default=[], help="none: the suite's first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of the environment, repeated actions counted; 0: all")
    parser.add_argument("--smoke", action="store_true", help="a tiny network and few steps: shows that everything runs")
    options = parser.parse_args(args)
    verdicts = run(
        options.suite, options.logdir, options.tasks, options.agents, options.seeds, options.steps, options.smoke
    )
    print((options.logdir / "reproduce.md").read_text())
    failed = [f"{each.agent} on {each.task}" for each in verdicts if each.passed is False]
    if failed:
        raise Failed(f"below the gate: {', '.join(failed)}")
    judged = [each for each in verdicts if each.passed]
    print(f"pass: {len(judged)} of {len(verdicts)}" if judged else "no verdict: too few steps for the gate")


class Failed(FastwmError):
    """A score below its gate; the exit code is 1."""

    code = 1


def bench(args: Sequence[str]) -> None:
    """`fastwm bench update` measures a whole update; `fastwm bench [FAMILY ...]` the operators (in a checkout)."""
    parser = argparse.ArgumentParser(prog="fastwm bench", description="Measure an update, or operator families.")
    parser.add_argument("what", nargs="*", help="`update`, or families such as lambda_return; none: all families")
    parser.add_argument("--size", default="size1m", help="of the update: size1m ... size400m")
    parser.add_argument("--obs", default="vector", choices=("vector", "image"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-graph", action="store_true", help="of the update on a GPU: launch it, record no graph")
    parser.add_argument("--json", type=path, help="file for the figures")
    options = parser.parse_args(args)
    if options.what == ["update"]:
        from fastwm.runner.measure import measure_update
        from fastwm.writing import write_text

        result = measure_update(
            options.size, options.obs, options.precision, options.device, graph=not options.no_graph
        )
        if options.json:
            write_text(options.json, json.dumps(result, indent=1))
        print(
            f"update, {result['size']}, {result['obs']}, {result['precision']}: median {result['median_ms']:.1f} ms, "
            f"min {result['min_ms']:.1f} ms of {result['repeats']} ({result['threads']} threads, {result['device']})\n"
            f"library: {result['library']}, fastwm {result['fastwm']}, commit {result['commit']}"
        )
        return
    import fastwm
    from fastwm.info import provenance
    from fastwm.runner.config import resolve_device

    folder = Path("bench")
    known = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    if not known:
        raise FastwmError("the operator benchmarks are in the repository: run this in a checkout (or `make bench`)")
    if unknown := set(options.what) - set(known):
        raise FastwmError(f"no benchmark of {', '.join(sorted(unknown))}; there is: update, {', '.join(known)}")
    files = [str(folder / f"bench_{name}.py") for name in options.what or known]
    target = options.json or folder / "results" / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not all(map(importlib.util.find_spec, ("pytest", "pytest_benchmark"))):
        raise FastwmError(
            "the operator benchmarks need pytest and pytest-benchmark: pip install '.[dev]' in the checkout"
        )
    provenance(str(resolve_device(options.device)))  # refuses where there is nothing to measure
    # The child must import the fastwm that this process did, not the one of the current folder.
    environment = os.environ | {"FASTWM_BENCH_DEVICE": options.device, "FASTWM_BENCH_PACKAGE": fastwm.__file__}
    run = [sys.executable, "-P", "-m", "pytest", "--import-mode=append", "-q", "--benchmark-only",
           "--benchmark-columns=median", *files]  # fmt: skip
    if subprocess.run([*run, f"--benchmark-json={target}"], env=environment).returncode:
        raise FastwmError("a benchmark failed; see above")
    subprocess.run([sys.executable, str(folder / "report.py"), str(target)], check=True)


def doctor(args: Sequence[str]) -> None:
    """`fastwm doctor`."""
    from fastwm.info import doctor as report

    argparse.ArgumentParser(prog="fastwm doctor", description="What is installed and what works here.").parse_args(args)
    print(report())


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "dream": dream,
    "view": view,
    "act": act,
    "import": import_,
    "export-replay": export_replay,
    "compare": compare,
    "import-checkpoint": import_checkpoint,
    "export": export,
    "reproduce": reproduce,
    "bench": bench,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for anything the user can mend, 130 after Ctrl-C."""
    logging.basicConfig(format="fastwm: %(levelname)s: %(message)s")
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if not args or args[0] in ("-h", "--help"):
            from fastwm.agents import AGENTS

            print(USAGE.format(agents=", ".join(AGENTS)))
            return 0 if args else 2
        if args[0] not in COMMANDS:
            raise FastwmError(f"unknown command {args[0]!r}; there is: {', '.join(COMMANDS)}")
        COMMANDS[args[0]](args[1:])
    except (FastwmError, argparse.ArgumentError) as error:
        if getattr(error, "heard", True):  # another process prints it
            print(f"fastwm: error: {error}", file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        print("fastwm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
