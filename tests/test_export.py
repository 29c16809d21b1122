"""Steps of every agent as plain modules: they act and imagine as the agent does, and their exports run alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastwm.agents import WorldModels, WorldModelsConfig
from fastwm.agents.steps import RSSMImagines, Step, acting_step, imagine_step
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.runner import export
from fastwm.runner.importing import import_checkpoint
from tests.agents_under_test import IMAGE, VECTOR, tiny
from tests.test_import import OFFICIAL

BUTTONS = spaces.Discrete(3)


def world_models() -> WorldModels:
    config = WorldModelsConfig(latents=6)
    config.m.hidden, config.m.done, config.c.features = 10, True, "zch"
    torch.manual_seed(0)
    agent = WorldModels(IMAGE["image"], BUTTONS, config)
    for p in agent.controller.parameters():
        torch.nn.init.normal_(p)
    return agent


AGENTS: dict[str, Callable[[], Any]] = {
    "dreamer_v3": lambda: tiny("dreamer_v3", VECTOR | IMAGE, {"steer": spaces.Box(-1, 1, (2,)), "press": BUTTONS}),
    "dreamer_v2": lambda: tiny("dreamer_v2", VECTOR | IMAGE),
    "dreamer_v1": lambda: tiny("dreamer_v1", VECTOR),
    "planet": lambda: tiny("planet", VECTOR),
    "world_models": world_models,
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["dreamer_v3", "dreamer_v2", "world_models"])
def test_the_acting_step_acts_as_the_agent(name: str) -> None:
    agent = AGENTS[name]()
    step = acting_step(agent)
    given = export.example(step, 3, torch.Generator().manual_seed(0))
    given["is_first"][1] = True
    obs = {key.removeprefix("obs/"): value for key, value in given.items() if key.startswith("obs/")}
    obs["is_first"] = given["is_first"]
    state = {key: given[key] for key in step.state}
    if name == "dreamer_v3":
        noise = given["noise"], {key: given[f"noise/{key}"] for key in agent.act_space}
        action, after = agent.act(obs, state, "eval", noise)
    elif name == "dreamer_v2":
        torch.manual_seed(5)
        given["noise"] = agent.world.rssm.noise(3)
        torch.manual_seed(5)
        action, after = agent.act(obs, state, "eval")
    else:
        action, after = agent.choose(obs, state, epsilon=given["noise"])
        action = agent.task.env_action(action)
    outputs = step(given)
    for key, value in (action if isinstance(action, dict) else {"action": action}).items():
        torch.testing.assert_close(outputs[f"action/{key}"], value)
    for key in step.state:
        torch.testing.assert_close(outputs[key], after[key])


@torch.no_grad()
@pytest.mark.parametrize("name", ["dreamer_v3", "dreamer_v2", "dreamer_v1"])
def test_the_imagine_step_is_the_open_loop(name: str) -> None:
    agent = AGENTS[name]()
    step = imagine_step(agent)
    assert isinstance(step, RSSMImagines)
    rssm, given = step.world.rssm, export.example(step, 3)
    start = type(rssm.initial(1))(given["deter"], given["stoch"])
    reached, _ = rssm.open_loop(start, given["action"][None], given["noise"][None])
    outputs = step(given)
    torch.testing.assert_close(outputs["deter"], reached.deter[0])
    torch.testing.assert_close(outputs["stoch"], reached.stoch[0])
    assert {f"obs/{key}" for key in agent.obs_space} < set(outputs) and outputs["value"].shape == (3,)


@torch.no_grad()
@pytest.mark.parametrize("name", AGENTS)
def test_temperature_widens_the_dream(name: str) -> None:
    """Dreams from one state differ the more the hotter they are; near 0 the likeliest is drawn."""
    step = imagine_step(AGENTS[name]())
    one = {key: each.draw(1) for key, each in step.inputs.items()}
    given = {key: value.expand(64, *value.shape[1:]) for key, value in one.items()} | step.draw_noise(64)
    latent = "z" if "z" in step.state else "stoch"

    def spread(temperature: float) -> float:
        return float(step(given, temperature)[latent].float().var(0).mean())

    assert spread(0.05) < spread(1.0) < spread(4.0)


def test_planet_only_imagines() -> None:
    with pytest.raises(FastwmError, match="PlaNet has no acting step"):
        acting_step(AGENTS["planet"]())


def test_a_run_as_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    import_checkpoint(OFFICIAL, tmp_path, stoch=8)
    assert main(["export", str(tmp_path), "--format", "onnx", "--steps", "20"]) == 0
    assert "acting_step.onnx: within" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "export/onnx.json").read_text())
    for name, file in manifest["files"].items():
        assert file["parity"]["largest_error"] < 1e-4 and file["parity"]["steps"] == 20
        session = runtime.InferenceSession(str(tmp_path / "export" / name))
        assert {each.name for each in session.get_inputs()} == set(file["inputs"])
        given = {key: np.zeros([5, *each["shape"][1:]], each["dtype"]) for key, each in file["inputs"].items()}
        outputs = dict(zip(file["outputs"], session.run(list(file["outputs"]), given)))
        assert all(len(value) == 5 for value in outputs.values()) and set(file["state"].values()) <= set(outputs)


class Shifted(Step):
    """A step whose export would be wrong."""

    def __init__(self, step: Step, by: float):
        super().__init__(step.agent)
        self.inputs, self.state, self.step, self.by = step.inputs, step.state, step, by

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.step(given)
        return outputs | {"reward": outputs["reward"] + self.by}


def test_the_check_finds_a_difference() -> None:
    step = imagine_step(AGENTS["dreamer_v1"]())

    def runner(by: float) -> export.Runner:
        other = Shifted(step, by)
        return lambda given: {export.output_name(step, k): v for k, v in export.run_step(other, given).items()}

    assert export.compare(step, runner(0.0), 3)["largest_error"] == 0
    with pytest.raises(FastwmError, match="differs from the agent by"):
        export.compare(step, runner(0.05), 3)


def test_a_run_as_a_package(tmp_path: Path) -> None:
    """AOTInductor compiles one small step; `fastwm export --format pt2` does so for both."""
    step = imagine_step(AGENTS["dreamer_v1"]())
    runner, _ = export.write_pt2(tmp_path / "step", step, export.traced(step))
    assert export.compare(step, runner, 20)["largest_error"] < 1e-4
