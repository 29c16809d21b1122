"""Several processes compute what one does: updates, whole runs, resumes, and what happens when one of them fails."""

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from fastwm.agents import agent_spec
from fastwm.agents.results import Streams
from fastwm.distributed import ALONE, Alone
from fastwm.errors import FastwmError
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, resolve_device
from fastwm.runner.train import Trainer, train
from tests.agents_under_test import TINY, make_batch, names, tiny
from tests.distributed_updates import KEYS, Result, distances, replaced, update
from tests.ranks import Pool, float64

train_module = sys.modules["fastwm.runner.train"]
ALL = ("metrics", "gradients", "moments", "state")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    ranks = Pool(4)
    yield ranks
    ranks.close()


# One update


@functools.cache
def free_nats(name: str) -> float:
    """Just below the batch's KL, which lies between those of its halves."""
    return 0.999 * float(update(ALONE, name)["metrics"]["loss/kl"]) if name in ("dreamer_v1", "dreamer_v2") else 0.1


@functools.cache
def alone(name: str) -> Result:
    return update(ALONE, name, free_nats=free_nats(name))


def wrong(name: str, ranks: list[Result]) -> dict[str, float]:
    return {key: value for key, value in distances(alone(name), ranks, ALL).items() if value >= 1e-10}


@pytest.mark.parametrize("name", names())
def test_two_ranks_make_the_update_of_one_process(pool: Pool, name: str) -> None:
    """Losses, gradients, moments, percentiles, weights in float64: images, dictionaries of actions, every optimiser."""
    assert not wrong(name, pool.run(2, update, name, "", True, 1, free_nats(name)))


FAULTS = [
    ("local percentiles", "dreamer_v3"),
    ("mean of percentiles", "dreamer_v3"),
    ("unreduced KL", "dreamer_v1"),
    ("unreduced KL", "dreamer_v2"),
    ("clip before the reduction", "planet"),
    ("clip before the reduction", "dreamer_v2"),
    ("AGC before the reduction", "dreamer_v3"),
    ("sum for mean", "dreamer_v1"),
    ("equal noise", "dreamer_v3"),
    ("one reduction left out", "dreamer_v1"),
    ("slow critic moved early", "dreamer_v2"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS)
def test_a_planted_fault_is_caught(pool: Pool, fault: str, name: str) -> None:
    assert wrong(name, pool.run(2, update, name, fault, True, 1, free_nats(name)))


@pytest.mark.parametrize("name", names())
def test_shards_lie_side_by_side(name: str) -> None:
    """An update in two shards is the plain update with the noise that each shard draws alone, bit by bit."""
    agent, plain = tiny(name), tiny(name)
    batch = make_batch(agent, 5, 4)
    agent.streams = Streams(KEYS, agent.device)
    noise, other = (agent.draw(5, 2, Streams([key], agent.device)) for key in KEYS)
    for field in ("post", "prior", "action"):
        both = [getattr(part, field) for part in (noise, other)]
        if both[0] is not None:
            both = [x if field == "post" else x.unflatten(1, (-1, 2)) for x in both]  # [H, T * B, S] -> [H, T, B, S]
            setattr(noise, field, torch.cat(both, -2).flatten(1, -2))
    noise.post = noise.post.unflatten(1, (4,)) if noise.post.dim() == 2 else noise.post
    agent.update(batch), plain.update(batch, noise)
    for (key, ours), theirs in zip(agent.state_dict().items(), plain.state_dict().values()):
        assert not isinstance(ours, torch.Tensor) or torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", names())
def test_replicas_stay_equal_to_the_bit(pool: Pool, name: str) -> None:
    """Gradients, moments, normaliser, slow critic and weights after many updates in float32, and close to those of one
    process after the first."""
    first, second = pool.run(2, update, name, "", False, 50)
    assert all(torch.equal(x, second[part][key]) for part in ALL[1:] for key, x in first[part].items())
    worst = distances(update(ALONE, name, "", False), pool.run(2, update, name, "", False), ("gradients",))
    assert max(worst.values()) < 1e-5, worst


# Whole runs


def settings(logdir: Path, steps: int, name: str = "dreamer_v3", **changes: Any) -> TrainConfig[Any]:
    shape = dict(env="cartpole", num_envs=4, shards=4, batch_size=4, batch_length=8, train_ratio=8.0, threads=1,
                 replay_capacity=1000, log_every=0.0)  # fmt: skip
    agent = agent_spec(name).config(**TINY[name])
    return TrainConfig(agent, logdir=str(logdir), steps=steps, **(shape | changes))


def run(group: Alone, config: TrainConfig[Any]) -> None:
    with float64():
        train("dreamer_v3", config, Path(config.logdir))


def outcome(logdir: Path) -> tuple[list[dict[str, float]], list[dict[str, torch.Tensor]]]:
    """The metrics without times, and the rows of every shard."""
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoint.checkpoints(logdir)[0]
    tails = [load_file(path) for path in sorted(newest.glob("shard-*/tail.safetensors"))]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines], tails


def check_same(first: Path, second: Path) -> None:
    """The same rows to the bit, and the same metrics up to the order of sums."""
    (ours, rows), (theirs, other_rows) = outcome(first), outcome(second)
    assert len(ours) == len(theirs) and [line.keys() for line in ours] == [line.keys() for line in theirs]
    for line, other in zip(ours, theirs):
        assert line == pytest.approx(other, rel=1e-6, abs=1e-8)
    for tail, other in zip(rows, other_rows, strict=True):
        assert tail.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in tail.items())


def test_a_run_does_not_depend_on_the_number_of_processes(pool: Pool, tmp_path: Path) -> None:
    """Fifty updates in four shards by 1, 2 and 4 processes; every environment has a stream of its own."""
    for world in (1, 2, 4):
        pool.run(world, run, settings(tmp_path / str(world), 264))
    check_same(tmp_path / "1", tmp_path / "2")
    check_same(tmp_path / "1", tmp_path / "4")
    lines, rows = outcome(tmp_path / "1")
    assert lines[-1]["updates"] >= 50
    assert len({tuple(tail["obs"][0, 0].tolist()) for tail in rows}) == 4


def test_a_run_goes_on_with_another_number_of_processes(pool: Pool, tmp_path: Path) -> None:
    for worlds in ((2, 1, 2), (1, 1, 1)):
        for world, steps in zip(worlds, (96, 128, 160)):
            pool.run(world, run, settings(tmp_path / str(worlds[0]), steps, shards=2))
    check_same(tmp_path / "2", tmp_path / "1")


# Failures


def parted(group: Alone, logdir: Path) -> str:
    """A rank whose weights have changed is found when the run is saved."""
    trainer = Trainer("dreamer_v3", settings(logdir, 8), logdir, group=group)
    next(trainer.agent.parameters()).data += 1e-6 * group.rank
    try:
        trainer.save()
    except FastwmError as error:
        return str(error)
    finally:
        trainer.close()
    return ""


def test_ranks_that_have_parted_do_not_save(pool: Pool, tmp_path: Path) -> None:
    errors = pool.run(2, parted, tmp_path)
    assert all("the agents of ranks 0 and 1 have parted by step 0" in error for error in errors)
    assert not checkpoint.checkpoints(tmp_path)


class Failing(gymnasium.Env):
    """The third environment answers NaN after 20 steps."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)
    made = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        broken = self.count > 20 and os.environ["RANK"] == "1"
        return np.full(3, np.nan if broken else 0.5, np.float32), 1.0, False, False, {}


def fail(group: Alone, config: TrainConfig[Any]) -> tuple[str, bool]:
    try:
        train("dreamer_v3", config, Path(config.logdir), Failing)
    except FastwmError as error:
        return str(error), bool(getattr(error, "heard", True))
    return "", False


def test_an_error_of_one_rank_is_told_once_and_saved_by_all(pool: Pool, tmp_path: Path) -> None:
    (elsewhere, silent), (error, told) = pool.run(2, fail, settings(tmp_path, 400))
    assert told and "is not finite (NaN or infinite) at its step 21" in error
    assert not silent and error in elsewhere
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [84]  # 21 rows of 4 environments


WRONG = [
    (dict(shards=3), "--shards 3 does not divide num_envs 4"),
    (dict(shards=1), "2 processes cannot share --shards 1 evenly: give --shards 2"),
    (dict(shards=2, device="cuda:7"), "device 'cuda:7' cannot be used"),
]


def refused(group: Alone, config: TrainConfig[Any], rank_seed: bool) -> str:
    if rank_seed:
        config.seed = group.rank
    try:
        train("dreamer_v3", config, Path(config.logdir))
    except FastwmError as error:
        return str(error) if getattr(error, "heard", True) else ""
    return "nothing"


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_use_is_told_by_one_rank(pool: Pool, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first, second = pool.run(2, refused, settings(tmp_path / "x", 8, **changes), False)
    assert message in first and not second
    assert not (tmp_path / "x").exists()


def test_a_rank_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Alone()
    group.world, group.rank = 2, 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FastwmError, match="rank 1 has no GPU of its own, its host has 1"):
        resolve_device("cuda", group)


def test_ranks_that_disagree_are_told_in_what(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(2, refused, settings(tmp_path, 8), True)
    assert "the ranks disagree: seed 0 on rank 0 (on rank 1: 1)" in first and not second


def unshared(group: Alone, config: TrainConfig[Any], folder: Path) -> str:
    config.logdir = str(folder / str(group.rank))
    with replaced(train_module, "check_agreed", lambda group, config: None):
        return refused(group, config, False)


def test_a_folder_that_is_not_shared_is_told(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(2, unshared, settings(tmp_path, 8), tmp_path)
    assert not first and "does not see the" in second and "on storage that all hosts share" in second


def leave(group: Alone, config: TrainConfig[Any]) -> tuple[str | None, int, str]:
    """Train until something ends it."""
    try:
        trainer = train("dreamer_v3", config, Path(config.logdir))
    except FastwmError as error:
        return None, error.code, str(error)
    return trainer.stop, trainer.step, ""


def test_signals_and_kills(pool: Pool, tmp_path: Path) -> None:
    """SIGTERM to one rank: both save at one step. SIGKILL: the other leaves, and the run can go on."""
    config = settings(tmp_path, 10**6, shards=2, save_every=0.5)
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = checkpoint.checkpoints(tmp_path)[:1]
        pool.start(range(2, 4), leave, config)
        while checkpoint.checkpoints(tmp_path)[:1] == before:
            assert not pool.pipes[2].poll(0.05), pool.answer(2)
        os.kill(pool.processes[3].pid or 0, number)
        stopped, step_or_code, error = pool.answer(2)
        newest = checkpoint.newest(tmp_path, checkpoint.read_meta)["step"]
        if number == signal.SIGTERM:
            assert pool.answer(3) == (stopped, step_or_code, "") == ("stopped by SIGTERM", newest, "")
        else:
            assert step_or_code == 1 and error.startswith("rank 0 lost the others")
