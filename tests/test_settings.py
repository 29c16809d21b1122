"""Settings: each has a line of help and a range, which is checked wherever a value comes from and whose bounds work."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
import tyro
from gymnasium import spaces

from fastwm.agents import AGENTS, DreamerV3Config
from fastwm.agents.world_models import CConfig
from fastwm.cli import main
from fastwm.runner.config import StagedConfig, TrainConfig, merge, preset_blocks, with_presets
from fastwm.settings import Range, SettingError, Settings, fits, hints
from tests.agents_under_test import BOX, IMAGE, TINY, VECTOR, make_batch, tiny


def nested(kind: type) -> Iterator[type[Settings]]:
    """A dataclass of settings and those inside it."""
    yield kind
    for hint in hints(kind).values():
        if isinstance(hint, type) and issubclass(hint, Settings):
            yield from nested(hint)


KINDS = [TrainConfig, StagedConfig, *(kind for spec in AGENTS.values() for kind in nested(spec.config))]


def ranges(kind: type[Settings]) -> Iterator[tuple[str, Any, Range]]:
    """The name, type and range of every number, also of one that may be a tuple instead."""
    for name, hint in hints(kind).items():
        for each in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
            if get_origin(each) is Annotated and get_args(each)[0] in (int, float):
                yield name, *get_args(each)[:2]


RANGES = [(kind, *each) for kind in KINDS for each in ranges(kind)]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def documented(kind: type) -> set[str]:
    """Fields followed by a docstring, in the class or in one that it extends."""
    names = set()
    for base in kind.__mro__:
        if dataclasses.is_dataclass(base):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for statement, after in zip(node.body, node.body[1:]):  # type: ignore[attr-defined]
                if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                    names.add(ast.unparse(statement.target))
    return names


@each
def test_every_setting_has_help_and_every_number_a_range(kind: type[Settings]) -> None:
    fields = {f.name for f in dataclasses.fields(kind)}
    groups = {name for name, hint in hints(kind).items() if isinstance(hint, type) and issubclass(hint, Settings)}
    assert fields - groups - {"agent"} <= documented(kind)
    assert not [name for name in fields if hints(kind)[name] in (int, float)]


def outside(typ: type, limits: Range) -> list[Any]:
    below = limits.low if limits.above else limits.low - 1
    above = limits.high if limits.below else limits.high + 1
    return [typ(value) for value in (below, above) if value < float("inf")] + [float("nan"), "3", None, True]


@pytest.mark.parametrize(("kind", "name", "typ", "limits"), RANGES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_value_out_of_range_is_refused(kind: Any, name: str, typ: type, limits: Range) -> None:
    own = (None,) if kind in (TrainConfig, StagedConfig) else ()
    config = kind(*own)
    for value in outside(typ, limits):
        with pytest.raises(SettingError, match=rf"^{name} must be .*, got "):
            kind(*own, **{name: value})
        with pytest.raises(SettingError, match=rf"^{name} must be .*, got "):
            setattr(config, name, value)
    assert getattr(config, name) in limits


TOGETHER = {"candidates": {"elites": 1}, "deter": {"blocks": 1}}  # what another setting must then be


def at_bounds() -> Iterator[tuple[str, str, Any]]:
    for agent in TINY:
        for name, typ, limits in ranges(AGENTS[agent].config):
            yield agent, name, typ(limits.low + 1e-12 * limits.above)
            if limits.high <= 1:
                yield agent, name, typ(limits.high - 1e-6 * limits.below)
            if fits(AGENTS[agent].config(), name, (5, 3)):
                yield agent, name, (5, 3)


@pytest.mark.parametrize(("agent", "name", "value"), list(at_bounds()))
def test_an_agent_learns_with_any_setting_at_its_bound(agent: str, name: str, value: Any) -> None:
    """What the range admits, the agent takes."""
    others = {key: v for key, v in TOGETHER.get(name, {}).items() if key in hints(AGENTS[agent].config)}
    obs = {"pos": VECTOR["pos"]} | (IMAGE if name in ("depth", "kernel", "bits") else {})
    act = spaces.Discrete(3) if agent == "dreamer_v2" else BOX
    learner = tiny(agent, obs, act, **others | {name: value})
    batch = make_batch(learner, 3, 2)
    metrics = learner.update(batch)
    learner.act({key: batch[key][0] for key in (*obs, "is_first")})
    assert all(torch.isfinite(value).all() for value in metrics.values())
    assert all(torch.isfinite(p).all() for p in learner.parameters())


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    for kind, changes, message in (
        (DreamerV3Config, {"bins": 254}, "bins must be odd, got 254"),
        (DreamerV3Config, {"deter": 500}, r"deter must be a multiple of blocks \(8\), got 500"),
        (DreamerV3Config, {"mults": (2, 0)}, "mults must be a tuple of entries at least 1"),
        (DreamerV3Config, {"mults": [2, 3]}, "mults must be a tuple"),
        (
            DreamerV3Config,
            {"actor_layers": ()},
            "actor_layers must be an integer or a tuple of at least 1 and at most 100",
        ),
        (DreamerV3Config, {"actor_layers": (8, 0)}, "actor_layers must be an integer or a tuple of entries at least 1"),
        (DreamerV3Config, {"precision": "fp16"}, "precision must be one of bf16, fp32, got 'fp16'"),
        (AGENTS["planet"].config, {"elites": 2000}, r"elites must be at most candidates \(1000\)"),
        (CConfig, {"population": 7}, "population must be even where seeds are antithetic"),
        (TrainConfig, {"agent": None, "env_args": {"size": 64}}, "env_args must be a dictionary of strings"),
    ):
        with pytest.raises(SettingError, match=message):
            kind(**changes)


@pytest.mark.parametrize("args", [
    ("dreamer_v3", "--agent.bins", "254"), ("dreamer_v3", "--agent.deter", "500"), ("dreamer_v3", "--agent.lr", "-1"),
    ("dreamer_v3", "--train-ratio", "-1"), ("dreamer_v3", "--agent.imag-length", "0"), ("dreamer_v3", "--seed", "-3"),
    ("dreamer_v3", "--threads", "1000000000"), ("planet", "--agent.elites", "9999"),
    ("world_models", "--agent.c.population", "1"), ("world_models", "--agent.m.lr", "0"),
], ids=" ".join)  # fmt: skip
def test_the_command_line_names_the_option(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    agent, name, value = args
    assert main(["train", agent, "--env", "carracing" if agent == "world_models" else "pendulum", name, value]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"fastwm: error: {name} must be ")
    assert float(error.rpartition("got ")[2]) == float(value)
    assert "\n" not in error


def test_a_run_folder_names_its_file_and_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    for text, message in (
        ("agent: {bins: 254}", "agent.bins must be odd, got 254"),
        ("agent: {lr: fast}", "agent.lr must be a finite number, got 'fast'"),
        (
            "agent: {actor_layers: [8, x]}",
            "agent.actor_layers must be an integer or a tuple of entries, got [8, 'x']",
        ),
        ("agent: 3", "agent must be a mapping of settings, got 3"),
        ("num_envs: 0", "num_envs must be at least 1"),
        ("steps: [1]", "steps must be an integer, got [1]"),
        ("env_args: 7", "env_args must be a dictionary of strings, got 7"),
    ):
        file.write_text(f"agent_name: dreamer_v3\nenv: cartpole\n{text}\n")
        assert main(["train", "dreamer_v3", "--logdir", str(tmp_path)]) == 2
        error = capsys.readouterr().err.strip()
        assert f"{file}: {message}" in error and "\n" not in error
    file.write_text("agent_name: dreamer_v3\nenv: cartpole\nagent: {lr: 1e-5}\nsteps: 0\n")  # to YAML 1e-5 is a string
    assert main(["train", "dreamer_v3", "--logdir", str(tmp_path)]) == 2
    assert "steps must be at least 1" in capsys.readouterr().err


def test_hidden_layers_are_a_number_or_widths() -> None:
    config = TrainConfig(AGENTS["dreamer_v2"].config())
    assert merge(config, {"agent": {"actor_layers": [8, 5], "critic_layers": 2}}).agent.actor_layers == (8, 5)
    given = tyro.cli(TrainConfig[AGENTS["dreamer_v2"].config], args=["--agent.actor-layers", "8", "5"], default=config)  # type: ignore[name-defined]
    assert given.agent.actor_layers == (8, 5) and given.agent.critic_layers == 4


def test_every_preset_is_in_range() -> None:
    for agent, spec in AGENTS.items():
        kind: Any = StagedConfig if spec.stages else TrainConfig
        for name in preset_blocks(agent):
            with_presets(kind(spec.config()), agent, [name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stepz 5", "no option --stepz; did you mean --steps?"),
        ("--agent.imag-horizn=3", "no option --agent.imag-horizn; did you mean --agent.imag-length?"),
        ("--steps abc", "--steps must be an integer, got abc"),
        ("--steps", "--steps must be an integer, got nothing"),
        ("--agent.discount 2", "--agent.discount must be at least 0 and at most 1, got 2"),
        ("--agent.precision fp99", "--agent.precision must be one of fp32, bf16, got fp99"),
        ("--agent.norm maybe", "--agent.norm takes no value, got 'maybe'"),
        ("stray", "expected an option, got 'stray'"),
    ],
)
def test_a_wrong_option_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dreamer_v2", *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
