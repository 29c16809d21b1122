"""Folders of runs made from checkpoints of other codes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch

from fastwm.agents import DreamerV3, load_official
from fastwm.agents.official_sizes import STOCH, official_config, official_spaces
from fastwm.agents.other_codes import official_arrays
from fastwm.envs import make_env
from fastwm.errors import FastwmError
from fastwm.files import regular
from fastwm.nn.spaces import is_image, width
from fastwm.pickled import read_arrays
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, env_options, write_config
from fastwm.runner.folder import run_folder


def import_checkpoint(
    file: str | Path, logdir: str | Path, env: str = "", stoch: int = STOCH, vectors: Sequence[str] = (),
    env_args: Mapping[str, str] | None = None,
) -> DreamerV3:  # fmt: skip
    """Make the folder of a run from a DreamerV3 checkpoint of another code; returns the agent, ready to `act`.

    `fastwm.load`, `eval` and `dream` take the folder as any other; `fastwm train dreamer_v3 --fresh-replay` continues
    it. Weights, slow critic and return scale are taken over, the optimiser begins anew.

    Args:
        file: the official code's `agent.pkl`, or r2dreamer's `latest.pt`. Reading either runs no code of it.
        logdir: folder to be made; one that holds a run already is an error.
        env: environment of the agent. Without it observations and actions are as the weights name them, and the
            folder cannot be evaluated.
        stoch: number of latent variables, of which the weights show only the product with the number of classes.
        vectors: names of the vector observations in the order in which r2dreamer joined them, where there are several.
        env_args: options of the environment.

    Raises:
        FastwmError: for a file of another form, and for weights that do not fit the environment, by name.
    """
    file, logdir = Path(file).expanduser(), Path(logdir).expanduser()
    if (logdir / "config.yaml").exists():
        raise FastwmError(f"{logdir} holds a run already: give another --logdir")
    settings: dict[str, Any] = {"env": env, "env_args": dict(env_args or {})}
    spaces = env_spaces(TrainConfig(None, **settings)) if env else None
    try:
        params, counters = read(file, spaces[0] if spaces else {}, vectors)
        agent_config = official_config(params, stoch)
        agent_config.precision = "fp32"
        obs_space, act_space = spaces or official_spaces(params)
        agent = DreamerV3(obs_space, act_space, agent_config)
        load_official(agent, params)
    except FastwmError as error:
        raise FastwmError(f"{file}: {error}") from error
    config = TrainConfig(agent_config, logdir=str(logdir), **settings)
    updates = int(counters.get("updates", 0))
    state: dict[str, Any] = {"step": 0, "decisions": 0, "updates": updates, "owed": 0, "seconds": 0.0, "credit": None}
    meta = {
        "agent": "dreamer_v3",
        "obs_space": checkpoint.space_to_json(obs_space),
        "act_space": checkpoint.space_to_json(act_space),
        "oldest_row": 0,
        "starts": 1,
    }
    with run_folder(logdir):
        checkpoint.save(logdir, 0, agent, state | {"rng": checkpoint.rng_state()}, meta)
        write_config(logdir / "config.yaml", "dreamer_v3", config)
    return agent.eval()


def env_spaces(config: TrainConfig[Any]) -> tuple[Any, Any]:
    """Observations and actions of the environment that the settings name."""
    env = make_env(config.env, 1, 0, **env_options(config))
    env.close()
    return env.obs_space, env.act_space


def read(
    file: Path, obs_space: Mapping[str, Any], vectors: Sequence[str]
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The weights by their official names, and the counters, of a checkpoint in any form that is known."""
    if is_zipfile(regular(file)):
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
            raise FastwmError(f"it is no checkpoint of weights alone: {str(error).splitlines()[0]}") from error
        own = {key: width(space) for key, space in obs_space.items() if not is_image(space)}
        if unknown := [name for name in vectors if name not in own]:
            raise FastwmError(f"the environment has no vector {unknown[0]!r}; there is: {', '.join(own)}")
        if len(own) > 1 and not vectors:
            raise FastwmError(f"give the order in which the vectors were joined: --vectors {' '.join(own)}")
        return official_arrays(saved, [(name, own[name]) for name in vectors or own]), {}
    saved = read_arrays(file)
    params = saved.get("params") if isinstance(saved, dict) else None
    if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
        raise FastwmError("it has no params by name: it is no agent.pkl of the official DreamerV3")
    counters = saved.get("counters")
    arrays = {name: value for name, value in params.items() if isinstance(value, np.ndarray)}
    return arrays, counters if isinstance(counters, dict) else {}
