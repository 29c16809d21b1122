"""The settings of a run: one typed dataclass, filled from defaults, presets, the run's folder and the command line."""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import yaml

from fastwm.agents import agent_name
from fastwm.distributed import ALONE, Alone, local_rank
from fastwm.errors import FastwmError, Misfit
from fastwm.files import read_text
from fastwm.renamed import warn_renamed
from fastwm.settings import Count, Parallel, Range, SettingError, Settings, Weight, Whole, fits
from fastwm.writing import write_text

AgentConfig = TypeVar("AgentConfig")
ONCE = ("trust", "fresh_replay")
"""Settings of one command, which `config.yaml` does not keep."""
OBJECT = "object "
MAX_BYTES = 1 << 16  # of `config.yaml`; YAML is slow


@dataclass
class RunConfig(Settings, Generic[AgentConfig]):
    """Settings of every run."""

    agent: AgentConfig
    env: str = ""
    """`cartpole`, `dmc:walker_walk`, `atari:Pong`, `gym:<id>`, `envpool:<id>` or `module:factory`."""
    env_args: dict[str, str] = field(default_factory=dict)
    """Options of the environment, for example `size 64 repeat 2`."""
    keys: dict[str, str] = field(default_factory=dict)
    """Kinds of observations, for example `camera image:chw map symbols:11 debug out`; others are guessed."""
    logdir: str = ""
    """Folder of the run; the same command again continues it."""
    preset: tuple[str, ...] = ()
    """Named blocks of settings, applied in order."""
    seed: Whole = 0
    """Seed of the weights, the environments and all random draws."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    threads: Annotated[int, Range(0, 1024)] = 0
    """CPU threads; 0 leaves the number to PyTorch. Small models are as fast on one, and undisturbed by other load."""
    log_every: Weight = 10.0
    """Seconds between lines of progress."""
    save_every: Weight = 300.0
    """Seconds between checkpoints."""
    keep: Annotated[int, Range(1, 1000)] = 2
    """Checkpoints kept: the newest ones. More than one lets a run go on where the newest is damaged."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the extra `log`)."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra `wandb`); with `WANDB_MODE=offline` it stays in the folder."""
    trust: bool = False
    """Let the folder of a run name code to import (`env: module:factory`), and files and links outside of it."""


@dataclass
class TrainConfig(RunConfig[AgentConfig]):
    """Settings of a run. Steps are rows of replay: one observation of one environment each, reset rows included."""

    steps: Count = 1_000_000
    """Length of the run, in steps."""
    num_envs: Parallel = 16
    """Environments that step together."""
    shards: Parallel = 1
    """Equal parts of environments, replay and batch, to be shared out among the processes of a torchrun."""
    batch_size: Parallel = 16
    """Windows per update."""
    batch_length: Annotated[int, Range(2, 2**16)] = 64
    """Trained rows of a window; one row of context comes before them."""
    train_ratio: Weight = 32.0
    """Replayed steps per step taken; an update replays `batch_size * batch_length`. 0 collects without learning."""
    prefill: Whole = 0
    """Steps of random actions before learning starts."""
    pretrain: Whole = 0
    """Updates made at once when learning starts."""
    update_every: Count = 1
    """Steps between bursts of the updates that are due."""
    replay_capacity: Count = 5_000_000
    """Rows kept in replay."""
    eval_every: Whole = 0
    """Steps between evaluations while training; the best checkpoint by them is kept in `best/`. 0: none."""
    eval_episodes: Annotated[int, Range(1, 10_000)] = 10
    """Episodes of such an evaluation."""
    video_every: Whole = 0
    """Steps between films while training, of an episode and of what the model imagines. 0: none."""
    offline: str = ""
    """Folder of stored rows to learn from, and from nothing else: a run's, or one that `fastwm import` has made."""
    actors: Annotated[int, Range(0, 2**16)] = 0
    """Processes that act apart from this one, `fastwm act LOGDIR --shard K`; 0 acts here."""
    max_staleness: Count = 5000
    """Updates after which an actor's weights are too old: rows chosen by them are left out."""
    fresh_replay: bool = False
    """Continue with the saved weights and an empty replay, where the saved rows are damaged or of no use."""


@dataclass
class StagedConfig(RunConfig[AgentConfig]):
    """Settings of a run in stages, whose own settings are the agent's."""

    stage: str = ""
    """Run this stage alone, in the first iteration where it is not finished; those before it must be."""


def preset_blocks(agent: str) -> dict[str, dict[str, Any]]:
    """All named blocks of an agent; an agent of the user's own has none."""
    file = resources.files("fastwm.configs").joinpath(f"{agent}.yaml")
    blocks: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return blocks


def with_presets(config: Any, agent: str, names: Iterable[str], env: str = "") -> Any:
    """`config` with the named blocks applied in order; an environment's own block `<env>_<name>` comes first."""
    blocks = preset_blocks(agent)
    for given in names:
        name = f"{env}_{given}" if f"{env}_{given}" in blocks else given
        if name not in blocks:
            raise FastwmError(f"unknown preset {given!r} for {agent}; there is: {', '.join(blocks) or 'none'}")
        block = dict(blocks[name])
        config = with_presets(config, agent, block.pop("base", ()), env)
        config = merge(config, block)
    return config


def in_new_names(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings, those of an earlier version under their new names."""
    for name, value in values.items():
        if name == "tanh_reward" and "clip_rewards" not in values:
            warn_renamed("the setting tanh_reward", "clip_rewards", 4)
            yield "clip_rewards", "tanh" if value else "identity"
        else:
            yield name, value


def merge(config: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass with nested `values` put in; unknown names are an error."""
    changes: dict[str, Any] = {}
    for name, value in in_new_names(values):
        if name not in {f.name for f in dataclasses.fields(config)}:
            raise FastwmError(f"unknown setting {name!r}; {type(config).__name__} has: {field_names(config)}")
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise SettingError(type(config), name, "a mapping of settings", value)
            try:
                value = merge(old, value)
            except SettingError as error:
                raise error.inside(name) from None
        elif isinstance(old, float) and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)  # YAML reads 1e-4 as a string
        elif isinstance(value, list) and (isinstance(old, tuple) or fits(config, name, tuple(value))):
            value = tuple(value)
        elif isinstance(old, dict) and isinstance(value, Mapping):
            value = {key: str(v) for key, v in value.items()}
        changes[name] = value
    return dataclasses.replace(config, **changes)


def field_names(config: Any) -> str:
    return ", ".join(f.name for f in dataclasses.fields(config))


def write_config(path: Path, agent: str, config: RunConfig[Any]) -> None:
    """The resolved settings as YAML, under the agent's name, with their checksum as the last line."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in ONCE}
    text = yaml.safe_dump({"agent_name": agent} | plain(values), sort_keys=False)
    write_text(path, f"{text}checksum: {_checksum(text)}\n")


def _checksum(text: str) -> str:
    return f"'{zlib.crc32(text.encode()):08x}'"


@contextmanager
def misfit_explained(logdir: Path, config: RunConfig[Any], what: str, remedy: str) -> Iterator[None]:
    """Where a checkpoint does not fit, name the settings that have changed since the run in `logdir` wrote them."""
    try:
        yield
    except Misfit as error:
        path = logdir / "config.yaml"
        before = _read_values(path) if path.is_file() else {}
        changes = _changes("agent", before.get("agent", {}), plain(dataclasses.asdict(config.agent)))
        if changes:
            raise FastwmError(
                f"{what} was begun with {', '.join(changes)}: its weights fit no other; "
                f"leave that setting as it was, or {remedy}"
            ) from error
        raise


def check_agreed(group: Alone, config: RunConfig[Any]) -> None:
    """Refuse ranks that were started with different settings."""
    own = plain(dataclasses.asdict(config))
    for rank, text in enumerate(group.words(yaml.safe_dump(own))):
        for setting, given in yaml.safe_load(text).items():
            if changes := _changes(setting, own[setting], given):
                raise FastwmError(
                    f"the ranks disagree: {changes[0].replace('(now', f'on rank {group.rank} (on rank {rank}:')}; "
                    "start all with the same command"
                )


def _changes(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in before if key in now for change in _changes(f"{name}.{key}", before[key], now[key])]
    return [] if before == now else [f"{name} {before} (now {now})"]


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def read_config(path: Path, config: Any, agent: str) -> Any:
    """The settings of an earlier run of the same agent, over `config`'s defaults.

    A file that was edited by hand has to lose its last line, the checksum; then every setting must be there.
    """
    values = _read_values(path)
    name = values.pop("agent_name", None)
    if not isinstance(name, str):
        raise FastwmError(f"{path} is not a run's configuration; remove it or use another logdir")
    if agent_name(name) != agent:
        raise FastwmError(f"{path.parent} is a run of {name}, not of {agent}; use another logdir")
    sealed = values.pop("checksum", None) is not None
    try:
        if once := values.keys() & set(ONCE):
            raise FastwmError(f"{min(once)!r} can only be given on the command line")
        merged = merge(config, values)
        if not sealed and (missing := _missing(config, values)):
            setting, default = missing
            raise FastwmError(f"{setting} is missing: the file was cut short, or add '{setting}: {default}'")
        return merged
    except FastwmError as error:
        raise FastwmError(f"{path}: {error}; correct the line, or use another logdir") from error


def _read_values(path: Path) -> dict[str, Any]:
    text = read_text(path, MAX_BYTES)
    last = re.search(r"^checksum: (.*)\n\Z", text, re.M)
    if last and last[1] != _checksum(text[: last.start()]):
        raise FastwmError(
            f"{path} is damaged or was edited; if you edited it, remove its last line, {last[0].strip()!r}"
        )
    try:
        values = _read_yaml(text)
    except ValueError as error:
        raise FastwmError(f"{path} is not a run's configuration; remove it or use another logdir") from error
    if not isinstance(values, dict) or ("checksum" in values) != bool(last):
        raise FastwmError(f"{path} is not a run's configuration; remove it or use another logdir")
    return values


def _read_yaml(text: str) -> Any:
    """Plain values alone; anything else is a ValueError. Aliases are refused: ten lines of them name a billion."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("it has aliases")
        return yaml.safe_load(text)
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error  # the loader's own, of `!!int ""` or `!!bool x`


def _missing(config: Any, values: Mapping[str, Any], prefix: str = "") -> tuple[str, Any] | None:
    """The first setting that `values` lacks, and its default."""
    for each in dataclasses.fields(config):
        old = getattr(config, each.name)
        if dataclasses.is_dataclass(old):
            if missing := _missing(old, values.get(each.name, {}), f"{prefix}{each.name}."):
                return missing
        elif each.name not in values and each.name not in ONCE:
            return prefix + each.name, plain(old)
    return None


def env_options(config: RunConfig[Any]) -> dict[str, Any]:
    """Options of `make_env`: `keys`, and `env_args` with their values read as YAML: `64` is a number, `true` a flag."""
    if taken := config.env_args.keys() & {"name", "num_envs", "seed", "keys"}:
        raise FastwmError(f"env_args cannot set {sorted(taken)[0]}: it is a setting of the run, not of the environment")
    options: dict[str, Any] = {"keys": config.keys} if config.keys else {}
    for key, value in config.env_args.items():
        try:
            options[key] = _read_yaml(value)
        except ValueError:
            raise FastwmError(f"env_args {key} is given as {value[:60]!r}, which is no value in YAML") from None
    return options


def resolve_device(name: str, group: Alone = ALONE) -> torch.device:
    """The device of that name; of several processes on one host each gets a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and group.world > 1:
        if (number := local_rank()) >= torch.cuda.device_count():
            raise FastwmError(
                f"rank {group.rank} has no GPU of its own, its host has {torch.cuda.device_count()}: "
                "start as many processes a host as it has GPUs, or give --device cpu"
            )
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FastwmError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


LARGE_GPU = 40 * 2**30
"""Bytes of GPU memory above which the official sizes of 200 million parameters train comfortably."""


def default_preset(
    agent: str, env: str = "", env_args: Mapping[str, str] | None = None, staged: bool = False
) -> tuple[str, ...]:
    """The preset where none is named; none is the official settings.

    It is the official one of the environment's family, in a size that suits the machine; on a CPU the one written
    for this very environment comes first. An agent with stages has presets for some environments only.
    """
    gpu = torch.cuda.is_available()
    blocks = preset_blocks(agent)
    if staged:
        name = "code" if gpu else "quick"
        return (name,) if f"{env}_{name}" in blocks else ()
    prefix, _, task = env.rpartition(":")
    if not gpu and blocks.get(task, {}).get("env") == env:
        return (task,)
    pixels = (env_args or {}).get("pixels", "false").lower() == "true"
    official = {
        "dmc": ("dmc_vision",) if pixels else ("dmc_proprio",),
        "atari": ("atari100k", "atari"),
        "crafter": ("crafter",),
        "minecraft": ("minecraft",),
    }  # fmt: skip
    family = tuple(name for name in official.get(prefix, ()) if name in blocks)[:1]
    if gpu:
        small = torch.cuda.get_device_properties(0).total_memory < LARGE_GPU or not family
        return family + ("size12m",) * (small and "size12m" in blocks and family != ("dmc_proprio",))
    if family and "size1m" in blocks:
        return (*family, "size1m")
    return ("small",) if "small" in blocks else ()


def replay_rows(config: TrainConfig[Any]) -> int:
    """Rows that the replay of a run needs room for: its capacity, or all that the run will add."""
    return min(config.replay_capacity, config.steps + config.num_envs * (config.batch_length + 1))


def env_name(env: Any) -> str:
    """The name that a run remembers for an environment given as an object: `module:factory` where it has one."""
    module, name = getattr(env, "__module__", ""), getattr(env, "__qualname__", type(env).__name__)
    importable = callable(env) and module not in ("", "__main__") and "<" not in name
    return f"{module}:{name}" if importable else f"{OBJECT}{name}"


def env_source(config: RunConfig[Any], given: Any = None) -> Any:
    """The argument of `make_env`: the object that was given, else the name in the settings."""
    if given is None and config.env.startswith(OBJECT):
        raise FastwmError(
            f"the environment of this run, {config.env.removeprefix(OBJECT)}, was given in Python: "
            "pass env again to fastwm.train or fastwm.evaluate"
        )
    return config.env if given is None else given
