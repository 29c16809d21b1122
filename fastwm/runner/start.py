"""Starting or continuing a run, from the command line or from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastwm.agents import agent_name, agent_spec
from fastwm.errors import FastwmError
from fastwm.files import check_folder
from fastwm.runner.config import (
    StagedConfig,
    TrainConfig,
    default_preset,
    env_name,
    merge,
    read_config,
    with_presets,
)
from fastwm.runner.stages import train_stages
from fastwm.runner.train import Callback
from fastwm.runner.train import train as train_steps
from fastwm.runner.trust import check_env


def initial_settings(
    name: str, env: str, logdir: str, preset: Sequence[str] = (), trust: bool = False,
    env_args: Mapping[str, str] | None = None,
) -> Any:  # fmt: skip
    """The settings before those that are given one by one: the folder's, or the defaults with the presets applied.

    Without `preset`, an agent takes the official one of the environment's family, sized for the machine.
    """
    spec = agent_spec(name)
    config: Any = (StagedConfig if spec.stages else TrainConfig)(spec.config())
    saved = Path(logdir, "config.yaml")
    if logdir and saved.is_file():
        check_folder(Path(logdir), trust)
        config = read_config(saved, config, name)
        if spec.stages:
            config.stage = ""
        names = () if tuple(preset) == config.preset else tuple(preset)
    else:
        names = tuple(preset) or default_preset(name, env, env_args, bool(spec.stages))
    if names:
        config = with_presets(config, name, names, env or config.env)
        config.preset = names
    return config


def start(name: str, config: Any, env: Any = None, callbacks: Sequence[Callback] = ()) -> Any:
    """Start or continue the run that `config` describes; returns its trainer. `env` replaces the name of `config`."""
    if not agent_spec(name).stages:
        return train_steps(name, config, Path(config.logdir), env, callbacks)
    if callbacks:
        raise FastwmError(f"{name} learns in stages, which call no callbacks")
    return train_stages(name, config, Path(config.logdir), env)


def train(
    name: str, env: Any = "", logdir: str | Path = "", preset: str | Sequence[str] = (),
    callbacks: Sequence[Callback] = (), **settings: Any,
) -> Any:  # fmt: skip
    """Train an agent, or continue the run in `logdir`; returns the agent, ready to `act`.

        agent = fastwm.train("dreamer_v3", env=make_my_env, logdir="runs/mine", steps=50_000, agent={"lr": 1e-4})

    Args:
        name: of the agent, as on the command line, or one of your own in `fastwm.agents.AGENTS`.
        env: a name, as on the command line; or a function that makes one Gymnasium environment; or an environment.
            The folder remembers a name only: pass an object again to continue, and to `fastwm.evaluate`.
        logdir: folder of the run.
        preset: one or several; none takes the one that suits the machine, as the command line does.
        callbacks: functions of the `Trainer`, called after every step of the environments. It has `step`, `updates`,
            `agent`, `replay`, `episodes` and `log`; setting its `stop` to a reason ends the run, saved.
        settings: any others, as in `config.yaml`; those of the agent as a dictionary `agent`.

    Raises FastwmError for a setting that does not exist or is out of range.
    """
    if not logdir:
        raise FastwmError("train needs logdir, the folder of the run")
    folder = str(Path(logdir).expanduser())
    name = agent_name(name)
    named = env if isinstance(env, str) else env_name(env)
    presets = (preset,) if isinstance(preset, str) else tuple(preset)
    config = initial_settings(name, named, folder, presets, bool(settings.get("trust")), settings.get("env_args"))
    config = merge(config, settings | {"logdir": folder} | ({"env": named} if named else {}))
    if (saved := Path(folder, "config.yaml")).is_file():
        check_env(saved, config, named, settings.get("env_args", ()))
    if not config.env and not getattr(config, "offline", ""):
        raise FastwmError("train needs env: a name, or a function that makes an environment")
    return start(name, config, None if isinstance(env, str) else env, callbacks).agent.eval()
