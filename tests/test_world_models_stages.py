"""World Models' stages by themselves: data, streams, fitness, evolution. Tests name their traps (docs/traps.md)."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastwm.agents.world_models import CConfig, MConfig, WorldModels, WorldModelsConfig
from fastwm.agents.world_models.baselines import PERIOD, baselines
from fastwm.agents.world_models.collect import Chunk, Collect, Frames, open_chunks, write_chunk
from fastwm.agents.world_models.encode import read_latents
from fastwm.agents.world_models.rnn import Streams, TrainM
from fastwm.agents.world_models.task import TASKS, HeldActions, RandomControllers, RandomWalk
from fastwm.envs import make_env
from fastwm.errors import FastwmError

IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
COVER, CAR = "tests.fake_tasks:cover", "tests.fake_tasks:car"


class Run:
    """A stage's surroundings, without a command line."""

    def __init__(self, folder: Path, env: str = COVER):
        self.folder, self.env, self.env_args, self.seed = folder, env, {}, 0
        self.stop, self.logged = False, list[tuple[int, dict[str, float]]]()
        self.folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        pass

    show = say

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logged.append((step, values))

    def due(self, what: str) -> bool:
        return True

    def stopping(self) -> bool:
        return self.stop

    def save(self, step: int, module: Any, state: Any) -> None:
        pass

    def restore(self, module: Any) -> None:
        return None

    def publish(self, agent: Any, count: int = 0) -> None:
        pass


def tiny(car: bool = False, **c: Any) -> WorldModels:
    torch.manual_seed(0)
    config = WorldModelsConfig(latents=4, m=MConfig(hidden=8, done=True, batch=2, length=5), c=CConfig(**c))
    config.collect = replace(config.collect, episodes=6, chunk_episodes=2, num_envs=2)
    if car:
        return WorldModels(spaces.Box(0, 255, (96, 96, 3), np.uint8), spaces.Box(-1, 1, (3,)), config)
    return WorldModels(IMAGE, spaces.Discrete(3), config)


def collect(folder: Path, env: str = COVER, agent: WorldModels | None = None) -> Collect:
    stage = Collect(Run(folder / "collect", env), agent or tiny(), [folder])
    assert not stage.restore()
    stage.work()
    assert stage.restore()
    return stage


# Collect


def test_only_acted_frames_are_kept(tmp_path: Path) -> None:
    """Acted frames.

    The frame after the end and the ignored action of the reset are no data; rewards count the steps (t40).
    """
    collect(tmp_path)
    for path in open_chunks([tmp_path / "collect"]):
        with np.load(path / "rows.npz") as file:
            starts = np.flatnonzero(file["is_first"])
            assert len(starts) == 2 and starts[0] == 0
            lengths = np.diff([*starts, len(file["is_first"])])
            assert all(length % 7 == 0 or length == 40 for length in lengths)  # the fake's block lands every 7 steps
            assert file["reward"].tolist() == [1] * sum(lengths)
            ends = np.flatnonzero(file["done"])
            assert set(ends) <= {*(starts[1:] - 1), len(file["is_first"]) - 1}
            for start, length in zip(starts, lengths):
                assert file["done"][start + length - 1] == (length != 40)  # a time limit is no end


def test_frames_of_many_chunks_are_one(tmp_path: Path) -> None:
    for index in range(3):
        image = np.full((4, 64, 64, 3), index, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 10
        flags = np.zeros(4, bool)
        write_chunk(tmp_path, index, Chunk(image, np.zeros((4, 1), np.float32), np.zeros(4, np.float32), flags, flags))
    frames = Frames(sorted(tmp_path.glob("chunk-*")))
    assert len(frames) == 12
    assert frames[np.array([0, 5, 11, 2])][:, 0, 0, 0].tolist() == [0, 11, 32, 20]


def test_short_episodes_are_dropped(tmp_path: Path) -> None:
    agent = tiny()
    agent.config.collect.min_frames = 10
    collect(tmp_path, agent=agent)
    for path in open_chunks([tmp_path / "collect"]):
        with np.load(path / "rows.npz") as file:
            assert np.diff([*np.flatnonzero(file["is_first"]), len(file["is_first"])]).min() >= 10


def test_a_round_ends_with_the_chunk_that_brings_it_to_enough_frames(tmp_path: Path) -> None:
    agent = tiny()
    agent.config.collect.max_frames = 1
    stage = collect(tmp_path, agent=agent)
    assert len(open_chunks([tmp_path / "collect"])) == 1
    first = json.loads((tmp_path / "collect" / "done.json").read_text())
    assert first["episodes"] == 2 and first["frames"] == stage.frames > 0
    agent.config.collect.max_frames = first["frames"] + 1
    assert not stage.restore()
    stage.work()
    assert stage.restore() and len(open_chunks([tmp_path / "collect"])) == 2
    agent.config.collect.max_frames = 1  # enough without the first chunk, which is gone
    shutil.rmtree(tmp_path / "collect" / "chunk-00000")
    assert not stage.restore()
    stage.work()
    assert stage.restore() and len(open_chunks([tmp_path / "collect"])) == 2


def test_a_missing_chunk_is_told_and_gathered_again(tmp_path: Path) -> None:
    stage = collect(tmp_path)
    kept = (tmp_path / "collect" / "chunk-00000" / "image.npy").stat().st_mtime_ns
    for file in (tmp_path / "collect" / "chunk-00001").iterdir():
        file.unlink()
    (tmp_path / "collect" / "chunk-00001").rmdir()
    with pytest.raises(FastwmError, match=r"chunk-00001 is missing or broken.*same command"):
        open_chunks([tmp_path / "collect"])
    assert not stage.restore()
    stage.work()
    assert len(open_chunks([tmp_path / "collect"])) == 3
    assert (tmp_path / "collect" / "chunk-00000" / "image.npy").stat().st_mtime_ns == kept


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(FastwmError, match="the disk is full; what was saved before is safe"):
        collect(tmp_path)
    assert not list((tmp_path / "collect").glob("*chunk*"))


def test_frames_that_cannot_fit_are_not_begun(tmp_path: Path) -> None:
    agent = tiny()
    agent.config.collect.episodes = agent.config.collect.chunk_episodes = 10**9
    with pytest.raises(FastwmError, match="do not fit"):
        Collect(Run(tmp_path / "collect"), agent, [tmp_path]).work()


def test_a_dying_environment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import fake_tasks

    def dies(*_: Any) -> None:
        raise RuntimeError("engine gone")

    monkeypatch.setattr(fake_tasks.Cover, "step", dies)
    with pytest.raises(FastwmError, match="engine gone"):
        collect(tmp_path)


def test_held_actions_follow_the_frame_number() -> None:
    policy = HeldActions(1, np.random.default_rng(0))
    first = np.array([True])
    actions = [float(policy({"is_first": first if t == 0 else ~first})) for t in range(200)]
    holds = np.diff(np.flatnonzero(np.diff(actions, prepend=2)))
    assert holds.min() >= 1 and holds.max() > 5 and max(map(abs, actions)) <= 1


def test_random_controllers_are_white_noise_around_half_gas() -> None:
    """The statistics that the specification gives for the public code's collection."""
    policy = RandomControllers(400, np.random.default_rng(0))
    first = np.ones(400, bool)
    actions = torch.stack([policy({"is_first": first if t == 0 else ~first}) for t in range(50)])
    assert abs(float(actions[..., 0].mean(0).median())) < 0.03
    assert abs(float(actions[..., 1].mean(0).median()) - 0.5) < 0.03
    assert 0.08 < float(actions[..., 0].std(0).median()) < 0.3
    assert float(actions[..., 2].min()) == 0


def test_brownian_motion_stays_in_the_box() -> None:
    policy = RandomWalk(TASKS["carracing"], 50, np.random.default_rng(0))
    first = np.ones(50, bool)
    actions = torch.stack([policy({"is_first": first if t == 0 else ~first}) for t in range(100)])
    assert actions[..., 0].min() == -1 and actions[..., 1:].min() == 0 and actions.max() == 1
    assert 0.05 < float(actions.diff(dim=0)[..., 0].abs().mean()) < 0.12  # sqrt(1/50) * sqrt(2/pi) = 0.11, clipped


def test_baselines() -> None:
    flags = {"is_first": np.array([True, True])}
    policy = baselines(TASKS["takecover"], 2, 0)["oscillate 100"]
    moves = [policy(flags if t == 0 else {"is_first": np.array([False, t == 150])})[:, 0].tolist() for t in range(260)]
    assert [m[0] for m in moves] == [-1] * PERIOD + [1] * PERIOD + [-1] * 60
    assert [m[1] for m in moves[150:]] == [-1] * PERIOD + [1] * 10
    assert set(baselines(TASKS["carracing"], 2, 0)) == {"random", "constant gas"}


# M's streams


@pytest.mark.parametrize(("overlap", "trained"), [(False, 4 * 4), (True, 4 * 5 - 1)])
def test_transitions_between_chunks(overlap: bool, trained: int) -> None:
    """Chunk borders."""
    is_first = np.zeros(47, bool)
    is_first[[0, 13, 30]] = True
    streams = Streams(is_first, batch=2, length=5, overlap=overlap)
    assert (streams.batch, streams.chunks) == (2, 4)
    rows = streams.shuffled(np.random.default_rng(0))
    assert rows.shape == (2, 20) and len(np.unique(rows)) == 40
    chunks = [streams.chunk(rows, i) for i in range(4)]
    assert sum(len(chunk) - 1 for chunk in chunks) == trained
    if overlap:
        assert all(np.array_equal(a[-1], b[0]) for a, b in itertools.pairwise(chunks))


def test_streams_keep_episodes_whole() -> None:
    is_first = np.zeros(30, bool)
    is_first[[0, 10, 20]] = True
    streams = Streams(is_first, batch=1, length=30, overlap=True)
    seen = {tuple(streams.shuffled(np.random.default_rng(seed))[0]) for seed in range(20)}
    assert len(seen) > 3
    for rows in seen:
        for start in range(0, 30, 10):
            assert np.diff(rows[start : start + 10]).tolist() == [1] * 9


def latents(rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    first = np.zeros(rows, bool)
    first[[0, 15, 40]] = True
    done = np.zeros(rows, bool)
    done[[14, 59]] = True  # the second episode ran into its time limit
    return {
        "mu": rng.standard_normal((rows, 4)).astype(np.float16), "logvar": np.full((rows, 4), -2, np.float16),
        "action": rng.uniform(-1, 1, (rows, 1)).astype(np.float16), "reward": np.ones(rows, np.float32),
        "is_first": first, "done": done,
    }  # fmt: skip


def train_m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **m: Any) -> TrainM:
    agent = tiny()
    agent.config.m = replace(agent.config.m, steps=3, **m)
    monkeypatch.setattr("fastwm.agents.world_models.rnn.read_latents", lambda folders: latents())
    stage = TrainM(Run(tmp_path / "m"), agent, [tmp_path])
    stage.restore()
    stage.work()
    return stage


def test_gradients_are_clipped_element_by_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elementwise clipping."""
    stage = train_m(tmp_path, monkeypatch, clip=0.002)
    grads = torch.cat([p.grad.flatten() for p in stage.agent.rnn.parameters() if p.grad is not None])
    bound = torch.tensor(0.002)
    at_bound = (grads.abs() == bound).sum()
    assert grads.abs().max() == bound and 5 < at_bound < len(grads)  # a norm would leave one at most there


def test_time_limits_teach_no_end_and_no_next_latent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = train_m(tmp_path, monkeypatch, length=60, batch=1)
    rows = torch.arange(60)[:, None]
    torch.manual_seed(0)
    before, _ = stage.loss_of(rows, None)
    stage.data["mu"][40] = 50  # the row after the time limit
    torch.manual_seed(0)
    hidden_reset = stage.loss_of(rows, None)[0].per_latent[0] - before.per_latent[0]
    stage.data["mu"][15] = 50  # the row after a death
    torch.manual_seed(0)
    with_death = stage.loss_of(rows, None)[0].per_latent[0] - before.per_latent[0]
    assert with_death.abs() > 10 * hidden_reset.abs()


def test_real_seeds_name_an_environments_episode() -> None:
    records = [make_env(COVER, len(seeds), seeds, size=64).reset()["image"] for seeds in ([3, 9], [9])]
    assert np.array_equal(records[0][1], records[1][0])
    with pytest.raises(FastwmError, match="as many seeds"):
        make_env(COVER, 2, [1], size=64)


def test_nothing_encoded_is_told(tmp_path: Path) -> None:
    with pytest.raises(FastwmError, match="nothing is encoded yet"):
        read_latents([tmp_path])
    (tmp_path / "done.json").write_text(json.dumps({"chunks": 1, "episodes": 1}))
    with pytest.raises(FastwmError, match="no frames yet"):
        open_chunks([tmp_path / "other"])
