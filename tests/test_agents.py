"""What every agent must do: act, learn, resume to the bit, dream, and refuse what it cannot."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import fastwm
from fastwm.agents import agent_spec
from fastwm.cli import main
from fastwm.errors import FastwmError
from fastwm.replay import Replay
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, preset_blocks, with_presets
from fastwm.runner.train import Trainer
from tests.agents_under_test import BOX, IMAGE, OLDER, TINY, VECTOR, make_batch, names, tiny

ACTIONS = {
    "continuous": BOX,
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([3, 5]),
    "dict": {"move": BOX, "jump": spaces.Discrete(2)},
}
SMALL_RUN = ["--batch-size", "4", "--batch-length", "8", "--replay-capacity", "4000", "--train-ratio", "8",
             "--num-envs", "4"]  # fmt: skip


def settings(name: str) -> list[str]:
    return [word for key, value in TINY[name].items() for word in (f"--agent.{key.replace('_', '-')}", str(value))]


def train(name: str, *args: str) -> int:
    return main(["train", name, *SMALL_RUN, *settings(name), *args])


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_preset_builds_a_config(name: str) -> None:
    for preset in preset_blocks(name):
        with_presets(TrainConfig(agent_spec(name).config()), name, [preset])


@pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS)
def test_acts_and_updates_with_every_action_space(name: str, act: Any) -> None:
    if name == "planet" and act is not BOX:
        with pytest.raises(FastwmError, match="real actions only"):
            tiny(name, act=act)
        return
    agent = tiny(name, act=act)
    batch = make_batch(agent)
    metrics = agent.update(batch)
    assert all(torch.isfinite(value) for value in metrics.values())
    obs, state = {key: value[0] for key, value in batch.items()}, None
    for mode in ("train", "eval", "random"):
        action, state = agent.act(obs, state, mode=mode)
        assert isinstance(action, dict) == isinstance(act, dict)
    assert state["deter"].shape == (3, 16)
    if isinstance(act, spaces.MultiDiscrete):
        draws = torch.stack([agent.act(obs, mode=mode)[0] for mode in ("train", "random") for _ in range(25)])
        assert (draws.amax((0, 1)) <= torch.tensor([2, 4])).all()


def test_learns_from_images_vectors_and_classes(name: str) -> None:
    obs = VECTOR | IMAGE | {"mode": spaces.Discrete(3)}
    agent = tiny(name, obs)
    batch = make_batch(agent, 4, 2)
    losses = [agent.update(batch) for _ in range(2)]
    assert all(value.isfinite() for loss in losses for value in loss.values())
    video = agent.imagine_video(batch, context=1)["image"]
    assert video.shape == (4, 2, 3 * 64, 64, 3) and video.dtype == torch.uint8
    assert agent.open_loop(batch, 1)["mode"].max() < 3


def test_vectors_have_no_video(name: str) -> None:
    agent = tiny(name)
    with pytest.raises(ValueError, match="no image"):
        agent.imagine_video(make_batch(agent))


def test_acting_remembers_and_resets(name: str) -> None:
    """Reset: where `is_first`, nothing of the past matters."""
    agent = tiny(name)
    obs = {key: value[0] for key, value in make_batch(agent).items()}

    def act(state: Any, **flags: Any) -> Any:
        torch.manual_seed(3)
        return agent.act(obs | flags, state, mode="eval")

    fresh, state = act(None)
    _, follow = act(state)
    again, reset = act(state, is_first=torch.ones(3, dtype=torch.bool))
    assert not torch.allclose(follow["deter"], state["deter"])
    torch.testing.assert_close(reset["deter"], state["deter"])
    torch.testing.assert_close(again, fresh)


def replay_of(agent: Any, seed: int) -> Replay:
    return Replay(200, 2, 6, seed=seed, latent_keys=agent.latent_keys, chunk_rows=16, online=agent.online)


def fill(agent: Any, replay: Replay) -> Replay:
    torch.manual_seed(5)
    for t in range(50):
        row = {key: value[0] for key, value in make_batch(agent, 1, 2).items() if key != "index"}
        row["is_first"] = torch.tensor([t % 7 == 0, t % 11 == 0])
        replay.add(row)
    return replay


def learn(agent: Any, replay: Replay, updates: int) -> None:
    for _ in range(updates):
        agent.update(replay.sample(4), write_back=replay.write_back)


def test_twenty_updates_equal_ten_and_a_resume(name: str, tmp_path: Path) -> None:
    """Weights, optimisers, counters, replay, and all random numbers: bitwise the same."""
    changes = {"slow_every": 7} if name == "dreamer_v2" else {}
    straight = tiny(name, **changes)
    learn(straight, fill(straight, replay_of(straight, 3)), 20)

    agent = tiny(name, **changes)
    replay = fill(agent, replay_of(agent, 3))
    learn(agent, replay, 10)
    state = {"rng": checkpoint.rng_state()}
    checkpoint.save(tmp_path, 10, agent, state, {}, lambda path: replay.save(path, tmp_path / "replay"))
    torch.manual_seed(99)

    resumed = tiny(name, **changes)
    with torch.no_grad():
        for p in resumed.parameters():
            p.add_(1)
    again = replay_of(agent, 8)
    path = checkpoint.checkpoints(tmp_path)[0]
    state = checkpoint.load_agent(path, resumed)
    again.load(path, tmp_path / "replay", state["more"])
    checkpoint.set_rng_state(state["rng"])
    learn(resumed, again, 10)
    for (key, value), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), key


@pytest.mark.parametrize("older", OLDER)
def test_a_run_trains_continues_evaluates_and_dreams(older: str, tmp_path: Path) -> None:
    logdir = ["--logdir", str(tmp_path)]
    assert train(older, "--env", "pendulum", "--steps", "200", "--prefill", "60", "--update-every", "20", *logdir) == 0
    assert main(["train", older, *logdir, "--steps", "240"]) == 0
    assert main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert main(["dream", str(tmp_path)]) == 0
    assert (tmp_path / "plots/imagination.png").stat().st_size > 1000
    agent = fastwm.load(tmp_path)
    obs = {"obs": np.zeros((2, 3), np.float32), "is_first": np.ones(2, bool)}
    action, state = agent.act(obs)
    action, _ = agent.act(obs | {"is_first": np.zeros(2, bool)}, state)
    assert action.shape == (2, 1) and action.abs().max() <= 1


def test_images_of_another_size_are_refused() -> None:
    for older in OLDER:
        with pytest.raises(ValueError, match="must be 64x64"):
            tiny(older, {"image": spaces.Box(0, 255, (84, 84, 3), np.uint8)})


def test_planet_on_discrete_actions_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("planet", "--env", "cartpole", "--logdir", str(tmp_path)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("fastwm: error: planet plans with real actions only") and "\n" not in error
    assert train("planet", "--env", "pendulum", "--agent.elites", "7", "--logdir", str(tmp_path)) == 2
    assert "--agent.elites must be at most candidates (6), got 7" in capsys.readouterr().err


def test_prefill_pretrain_and_bursts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random actions first, then the pretraining, then what is owed in bursts."""
    config = TrainConfig(agent_spec("planet").config(**TINY["planet"]), env="pendulum", steps=200, num_envs=4,
                         batch_size=2, batch_length=8, train_ratio=4, prefill=60, pretrain=7, update_every=40,
                         replay_capacity=1000)  # fmt: skip
    trainer = Trainer("planet", config, tmp_path)
    updates, modes, act = [], [], trainer.agent.act
    monkeypatch.setattr(trainer.agent, "update", lambda batch, write_back: updates.append(trainer.step) or {})
    monkeypatch.setattr(trainer.agent, "act", lambda obs, state, mode: modes.append(mode) or act(obs, state, mode))
    trainer.run()
    trainer.close()
    assert modes == ["random"] * 15 + ["train"] * 35
    # 24 of the first 80 steps are owed for: 1 at once, then a quarter each.
    assert Counter(updates) == {80: 7 + 6, 120: 10, 160: 10, 200: 10}
