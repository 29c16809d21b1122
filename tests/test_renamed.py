"""Old public names go on working for one version, and say the new one."""

import sys
from importlib import import_module

import pytest
import torch

from fastwm import nn, ops
from fastwm.agents import DreamerV2Config, agent_name, agent_spec
from fastwm.runner.config import TrainConfig, merge
from fastwm.runner.options import in_new_names


@pytest.mark.parametrize(
    ("old", "new"), [("gru_rssm_dream", "gru_rssm_imagine"), ("mdn_rnn_rollout", "mdn_rnn_imagine")]
)
def test_operators(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"ops.{old} is now fastwm.ops.{new}"):
        assert getattr(ops, old) is getattr(ops, new)


def test_gru_rssm_imagine_with_given_actions() -> None:
    rssm = nn.RSSM("planet", 4, 2, 8, 8, 3)
    start, action, noise = rssm.initial(2), torch.randn(3, 2, 2), rssm.noise(3, 2)
    expected = ops.gru_rssm_open_loop(*start, noise, action, rssm.weights, rssm.kind)
    with pytest.warns(DeprecationWarning, match="gru_rssm_open_loop"):
        got = ops.gru_rssm_imagine(*start, noise, action, rssm.weights, rssm.kind)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with pytest.warns(DeprecationWarning, match=r"RSSM\.open_loop"):
        torch.testing.assert_close(rssm.imagine(start, action, noise), rssm.open_loop(start, action, noise))


def test_agents() -> None:
    assert [agent_name(f"dreamerv{n}") for n in (1, 2, 3)] == ["dreamer_v1", "dreamer_v2", "dreamer_v3"]
    assert agent_spec("dreamerv3") is agent_spec("dreamer_v3")
    with pytest.raises(AttributeError, match="no attribute 'gru_rssm_sleep'"):
        ops.gru_rssm_sleep  # noqa: B018


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("fastwm.nn.keras", "DenseMLP", "fastwm.nn.layers and fastwm.nn.heads"),
        ("fastwm.nn.keras_codec", "ConvEncoder", "fastwm.nn.codec"),
        ("fastwm.nn.encoder", "Encoder", "fastwm.nn.codec"),
        ("fastwm.agents.dreamerv3", "DreamerV3Config", "fastwm.agents.dreamer_v3"),
        ("fastwm.runner.process", "settle", "fastwm.process"),
    ],
)  # fmt: skip
def test_modules(old: str, name: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert callable(getattr(import_module(old), name))
    with pytest.raises(ModuleNotFoundError, match="fastwm.nn.torch"):
        import_module("fastwm.nn.torch")


def test_settings() -> None:
    config = TrainConfig(DreamerV2Config())
    with pytest.warns(DeprecationWarning, match="tanh_reward is now clip_rewards"):
        assert merge(config, {"agent": {"tanh_reward": True}}).agent.clip_rewards == "tanh"
    assert in_new_names(["--steps", "3", "--agent.tanh_reward"]) == ["--steps", "3", "--agent.clip-rewards", "tanh"]
