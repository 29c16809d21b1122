"""Checkpoints of other codes: they act as recorded there, and a crafted file runs nothing."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import fastwm
from fastwm.agents import DreamerV3
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.nn.rssm import State
from fastwm.nn.spaces import encode
from fastwm.pickled import read_arrays
from fastwm.runner.importing import import_checkpoint

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL, R2DREAMER = GOLDEN / "official_v3_agent.pkl", GOLDEN / "r2dreamer_latest.pt"


class Robot(gymnasium.Env):
    """The observations that the checkpoint of r2dreamer was made for."""

    observation_space = spaces.Dict(
        state=spaces.Box(-9, 9, (3,)), speed=spaces.Box(-9, 9, (2,)), image=spaces.Box(0, 255, (64, 64, 3), np.uint8)
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, **_: Any) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def replayed(agent: DreamerV3, file: Path, actions: dict[str, str]) -> tuple[Any, list[tuple[State, Tensor, Any]]]:
    """The states, posterior logits and policies along a recording, whose latents and actions are fed back."""
    with np.load(file) as recorded:
        told = {key: torch.as_tensor(value) for key, value in recorded.items() if value.dtype.kind != "U"}
    steps, state, path = len(told["deter"]), agent.initial(told["deter"].shape[1]), []
    for t in range(steps):
        obs = {key: told[f"obs/{key}"][t] for key in (*agent.obs_space, "is_first")}
        past = State(state["deter"], state["stoch"])
        post, logits = agent.rssm.observe_step(past, state["action"], agent.encoder(obs), obs["is_first"])
        post = State(post.deter, told["stoch"][t].float())
        path.append((post, logits, agent.actor(*post.parts)))
        taken = encode(agent.act_space, {key: told[name][t] for key, name in actions.items()})
        state = {"deter": post.deter, "stoch": post.stoch, "action": taken}
    return told, path


def assert_close(ours: list[Tensor], theirs: Tensor) -> None:
    torch.testing.assert_close(torch.stack(ours).view_as(theirs), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_official_agent_acts_as_recorded(tmp_path: Path, capsys: Any) -> None:
    assert main(["import-checkpoint", str(OFFICIAL), "--logdir", str(tmp_path / "run"), "--stoch", "8"]) == 0
    assert "action steer: Box" in capsys.readouterr().out
    agent = fastwm.load(tmp_path / "run")
    told, path = replayed(
        agent, GOLDEN / "official_v3_acting.npz", {"steer": "action/steer", "button": "action/button"}
    )
    states, logits, policies = zip(*path)
    assert_close([state.deter for state in states], told["deter"])
    assert_close(list(logits), told["logit"])
    assert_close([policy.dists["steer"].mean for policy in policies], told["policy/steer/mean"])
    assert_close([policy.dists["steer"].std for policy in policies], told["policy/steer/stddev"])
    assert_close(
        [policy.dists["button"].log_probs for policy in policies], told["policy/button/logits"].log_softmax(-1)
    )
    assert_close([agent.critic(*state.parts).mean for state in states], told["value"])
    assert "no environment" in error_of(["eval", str(tmp_path / "run")], capsys)


@torch.no_grad()
def test_an_agent_of_r2dreamer_acts_as_recorded(tmp_path: Path) -> None:
    options: dict[str, Any] = {"env": "tests.test_import:Robot", "stoch": 8}
    with pytest.raises(FastwmError, match="--vectors state speed"):
        import_checkpoint(R2DREAMER, tmp_path, **options)
    agent = import_checkpoint(R2DREAMER, tmp_path, vectors=("state", "speed"), **options)
    told, path = replayed(agent, GOLDEN / "r2dreamer_acting.npz", {"action": "action"})
    states, logits, policies = zip(*path)
    assert_close([state.deter for state in states], told["deter"])
    assert_close(list(logits), told["logit"])
    assert_close([policy.dists["action"].mean for policy in policies], told["mean"])
    for head, name in ((agent.critic, "value"), (agent.reward, "reward")):
        assert_close([head(*state.parts).logits for state in states], told[f"{name}_logits"])
    assert_close([agent.cont(*state.parts).prob for state in states], told["cont"])
    seen = [agent.decoder(state.deter, state.stoch.flatten(-2)) for state in states]
    assert_close([each["state"].prediction for each in seen], told["state_hat"])
    assert_close([seen[-1]["image"].prediction], told["image_hat"][None])
    assert agent.return_norm.lo == -1.5 and agent.return_norm.hi == 4


def test_an_import_is_evaluated_and_trained_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"env": "tests.test_import:Robot", "vectors": ("state", "speed")}
    agent = import_checkpoint(R2DREAMER, run, stoch=8, **options)
    train = ["train", "dreamer_v3", "--logdir", str(run), "--fresh-replay", "--trust", "--steps", "60", "--num-envs"]
    assert main([*train, "1", "--batch-size", "2", "--batch-length", "8", "--agent.warmup", "0"]) == 0
    assert fastwm.evaluate(run, episodes=1, max_steps=5, trust=True)["episodes"] == 1
    trained = fastwm.load(run, trust=True)
    pairs = [(p, q) for p, q in zip(agent.parameters(), trained.parameters()) if p.requires_grad]
    assert sum(not torch.equal(p, q) for p, q in pairs) > len(pairs) / 2
    with pytest.raises(FastwmError, match="holds a run already"):
        import_checkpoint(OFFICIAL, run)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(FastwmError, match="48 classes in all, which 32 variables cannot share"):
        import_checkpoint(OFFICIAL, tmp_path)
    with pytest.raises(FastwmError, match=r"dec/vec/obs/pred/kernel is missing"):
        import_checkpoint(OFFICIAL, tmp_path, env="cartpole", stoch=8)
    for name, code in (("_wm.dynamics._cell.layers.GRU_linear.weight", "dreamerv3-torch"),
                       ("rssm.recurrent_model.rnn.linear.weight", "sheeprl")):  # fmt: skip
        key = "world_model" if code == "sheeprl" else "agent_state_dict"
        torch.save({key: {name: torch.zeros(3)}}, tmp_path / "other.pt")
        with pytest.raises(FastwmError, match=f"{code}, whose recurrent network is one dense GRU"):
            import_checkpoint(tmp_path / "other.pt", tmp_path)
    torch.save({"agent_state_dict": {"actor.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(FastwmError, match="of no code that is known here"):
        import_checkpoint(tmp_path / "other.pt", tmp_path)
    assert not (tmp_path / "config.yaml").exists()


class Call:
    """Its pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def test_arrays_come_through(tmp_path: Path) -> None:
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "f": np.asfortranarray(np.eye(3)[:2]),
              "scalar": np.float32(2.5), "big": np.arange(3, dtype=">i8"), "none": (None, [True, 1, "x"])}  # fmt: skip
    for protocol in range(3, 6):
        (tmp_path / "file").write_bytes(pickle.dumps(values, protocol))
        read = read_arrays(tmp_path / "file")
        for key in ("a", "f", "scalar", "big"):
            np.testing.assert_array_equal(read[key], values[key])
        assert read["none"] == values["none"]


LAUGHS: list[Any] = []
for _ in range(60):
    LAUGHS = [LAUGHS, LAUGHS]
CRAFTED = {
    "a call": pickle.dumps({"params": Call(Path.touch, Path("ran"))}),
    "a call by NumPy": pickle.dumps(Call(np.load, "file")),
    "objects": pickle.dumps(np.array([Call(Path.touch, Path("ran"))], object)),
    "a text array": pickle.dumps(np.array(["x"])),
    "too few bytes": pickle.dumps(np.zeros(8)).replace(b"K\x08\x85", b"K\xff\x85"),
    "a huge memo": b"\x80\x04]r\xff\xff\xff\x7f.",
    "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "a bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
    "itself": b"\x80\x04]\x94h\x00a.",
    "cut": OFFICIAL.read_bytes()[:-100],
    "no pickle": b"hello",
    "nothing": b"",
    "no checkpoint": pickle.dumps(LAUGHS),
    "no names": pickle.dumps({"params": {1: np.zeros(3)}}),
}


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_pickle_runs_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(content)
    error = error_of(["import-checkpoint", "file", "--logdir", "run"], capsys)
    assert "file" in error and not Path("ran").exists() and not Path("run").exists()


def test_a_crafted_file_of_torch_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"agent_state_dict": Call(Path.touch, Path("ran"))}, "file")
    assert "weights alone" in error_of(["import-checkpoint", "file", "--logdir", "run"], capsys)
    shutil.copy(R2DREAMER, "half")
    Path("half").write_bytes(Path("half").read_bytes()[:5000])
    assert "half" in error_of(["import-checkpoint", "half", "--logdir", "run"], capsys)
    assert not Path("ran").exists()


def error_of(arguments: list[str], capsys: Any) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fastwm: error: "), error
    return str(error)
