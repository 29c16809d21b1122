"""Weights of the official codes: every agent takes them by their names, and says what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastwm.agents import Agent, WorldModels, WorldModelsConfig, load_official
from fastwm.agents.official import OfficialError, sources
from fastwm.agents.world_models.official import load_controller, load_rnn, load_vae
from fastwm.errors import FastwmError
from tests.agents_under_test import IMAGE, VECTOR, tiny

GOLDEN = Path(__file__).parent / "golden"
CAR = spaces.Box(np.array([-1.0, 0, 0], np.float32), np.ones(3, np.float32))
LSTM = "RNN/layer_norm_basic_lstm_cell"


def world_models() -> WorldModels:
    config = WorldModelsConfig(latents=6)
    config.m.hidden, config.c.features = 10, "zh"
    torch.manual_seed(0)
    return WorldModels(IMAGE["image"], CAR, config)


def official(agent: Agent) -> dict[str, np.ndarray]:
    """Random arrays under the official names, of the shapes that the agent needs."""
    rng = np.random.default_rng(0)
    ours, arrays = dict(agent.named_parameters()), {}
    for name, source in sources(agent).items():
        rows, *rest = ours[name].shape
        shape = [rows // len(source.names), *rest]
        theirs = shape if len(shape) in (1, 3) else shape[::-1] if len(shape) == 2 else [*shape[2:], shape[1], shape[0]]
        arrays |= {each: rng.standard_normal(theirs).astype(np.float32) for each in source.names}
    return arrays


AGENTS: dict[str, Any] = {
    "dreamer_v3": lambda: tiny("dreamer_v3", VECTOR | IMAGE),
    "dreamer_v2": lambda: tiny("dreamer_v2", {"vel": VECTOR["pos"]} | IMAGE, norm=True, predict_cont=True),
    "planet": lambda: tiny("planet", IMAGE),
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_parameter_comes_from_its_own_array(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]()
    arrays = official(agent)
    np.savez(tmp_path / "weights.npz", **{f"{key}:0": x for key, x in arrays.items()}, **{"opt/step": np.array(3)})
    load_official(agent, tmp_path / "weights.npz")
    for ours, p in agent.named_parameters():
        assert torch.equal(p, sources(agent)[ours](arrays)), ours
    used = [each for source in sources(agent).values() for each in source.names]
    assert len(used) == len(set(used)) == len(arrays)


@pytest.mark.parametrize("name", AGENTS)
def test_what_does_not_fit_is_named_and_changes_nothing(name: str) -> None:
    agent = AGENTS[name]()
    arrays, before = official(agent), [p.clone() for p in agent.parameters()]
    first, second, *_ = arrays
    group = first.split("/")[0]
    wrong = arrays | {second: np.zeros((2, 3), np.float32), f"{group}/other/kernel": np.zeros(1)}
    del wrong[first]
    with pytest.raises(
        ValueError, match=rf"{first} is missing \(our .*{second} \[2, 3\] has another shape \(our "
    ) as error:
        load_official(agent, wrong)
    assert isinstance(error.value, OfficialError) and f"{group}/other/kernel is left over" in str(error.value)
    with pytest.raises(OfficialError, match=r"; and \d+ more. Check the sizes in the config"):
        load_official(agent, {})
    assert all(torch.equal(p, kept) for p, kept in zip(agent.parameters(), before))


def test_a_slow_critic_may_be_missing() -> None:
    agent = AGENTS["dreamer_v2"]()
    arrays = official(agent)
    load_official(agent, {name: x for name, x in arrays.items() if not name.startswith("target_critic")})
    pairs = zip(agent.critic.parameters(), agent.slow_critic.parameters())
    assert all(torch.equal(fast, slow) for fast, slow in pairs)


def test_an_agent_that_the_official_code_cannot_build_is_refused() -> None:
    for agent in (tiny("dreamer_v1"), tiny("planet"), tiny("dreamer_v1", IMAGE, norm=True)):
        with pytest.raises(FastwmError, match="has nothing like our world"):
            load_official(agent, {})


def test_world_models_come_whole_or_in_parts() -> None:
    with np.load(GOLDEN / "mdn_rnn.npz") as file:
        rnn = {name: file[f"car/params0/{name}"] for name in ("out_w", "out_b", "lstm_kernel", "lstm_bias")}
    agent, other = world_models(), world_models()
    names = {
        "RNN/output_w": "out_w",
        "RNN/output_b": "out_b",
        f"{LSTM}/kernel": "lstm_kernel",
        f"{LSTM}/bias": "lstm_bias",
    }
    rnn["lstm_kernel"] = np.concatenate([rnn["lstm_kernel"][:8], np.ones((1, 40)), rnn["lstm_kernel"][8:]])  # 3 actions
    load_official(agent, {name: rnn[key] for name, key in names.items()})
    load_rnn(other.rnn, [rnn[key] for key in names.values()])
    assert all(torch.equal(p, q) for p, q in zip(agent.rnn.parameters(), other.rnn.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(agent.vae.parameters(), other.vae.parameters()))  # untouched

    arrays = official_vae_and_controller()
    load_official(agent, arrays)
    load_vae(other.vae, [x for name, x in arrays.items() if not name.startswith("controller")])
    load_controller(other.controller, arrays["controller/weight"], arrays["controller/bias"])
    assert all(torch.equal(p, q) for p, q in zip(agent.parameters(), other.parameters()))
    with pytest.raises(OfficialError, match=r"RNN/output_b is missing \(our rnn.head.linear.bias"):
        load_official(agent, {"RNN/output_w": rnn["out_w"]})


def official_vae_and_controller() -> dict[str, np.ndarray]:
    rng, arrays, channels = np.random.default_rng(1), {}, 3
    layers = [(f"enc_conv{i + 1}", (4, 4, 3 if i == 0 else 16 * 2**i, 32 * 2**i)) for i in range(4)]
    layers += [("enc_fc_mu", (1024, 6)), ("enc_fc_log_var", (1024, 6)), ("dec_fc", (6, 1024))]
    widths = (1024, 128, 64, 32, channels)
    layers += [(f"dec_deconv{i + 1}", (k, k, widths[i + 1], widths[i])) for i, k in enumerate((5, 5, 6, 6))]
    for name, shape in layers:
        arrays[f"{name}/kernel"] = rng.standard_normal(shape).astype(np.float32)
        arrays[f"{name}/bias"] = rng.standard_normal(shape[2] if "deconv" in name else shape[-1]).astype(np.float32)
    return arrays | {
        "controller/weight": rng.standard_normal((16, 3)).astype(np.float32),
        "controller/bias": rng.standard_normal(3).astype(np.float32),
    }
