"""Actors apart from the learner: every row arrives once and in order, and whoever dies comes back."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastwm import chunks
from fastwm.cli import main
from fastwm.distributed import Alone
from fastwm.runner import actors, checkpoint
from tests.ranks import Pool
from tests.test_distributed import settings, train


@pytest.fixture
def pool() -> Iterator[Pool]:
    processes = Pool(4)
    yield processes
    processes.close()


def learn(group: Alone, logdir: Path, steps: int, slow: float = 0.0) -> tuple[int, int, list[list[int]], str | None]:
    actors.PUBLISH = 0.2
    config = settings(logdir, steps, actors=2, shards=1, log_every=0.3, save_every=0.5, max_staleness=10_000)
    trainer = train("dreamer_v3", config, logdir)
    return trainer.step, trainer.updates, [shard.at for shard in trainer.shards], trainer.stop


def act(group: Alone, logdir: Path, number: int) -> str:
    return actors.act(logdir, number, "cpu", patience=60.0)


def wait_for_step(logdir: Path, step: int) -> None:
    end = time.monotonic() + 100
    while not any(line["step"] >= step for line in lines_of(logdir)):
        assert time.monotonic() < end
        time.sleep(0.1)


def lines_of(logdir: Path) -> list[dict[str, Any]]:
    path = logdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_learner_survives_its_actors_and_they_survive_it(pool: Pool, tmp_path: Path) -> None:
    """An actor is killed and started again, then the learner is stopped and goes on; the ratio holds throughout."""
    pool.start(range(1), learn, tmp_path, 10**6)
    pool.start(range(1, 2), act, tmp_path, 0)
    pool.start(range(2, 3), act, tmp_path, 1)
    wait_for_step(tmp_path, 200)
    os.kill(pool.processes[2].pid or 0, signal.SIGKILL)
    pool.start(range(3, 4), act, tmp_path, 1)
    wait_for_step(tmp_path, 400)
    os.kill(pool.processes[0].pid or 0, signal.SIGTERM)
    step, updates, read, stop = pool.answer(0)
    assert stop == "stopped by SIGTERM"
    pool.start(range(1), learn, tmp_path, step + 200)
    end, after, later, stop = pool.answer(0)
    assert stop is None and end >= step + 200 and later[0] > read[0]
    # One update for every 4 steps, from the first batch's worth of windows on.
    assert abs((after - updates) - (end - step) / 4) <= 1
    assert "the learner has finished" in pool.answer(1) and "the learner has finished" in pool.answer(3)
    lines = lines_of(tmp_path)
    assert all(line["actor/0/staleness"] >= 0 and line["actor/1/dropped"] == 0 for line in lines if "updates" in line)
    assert checkpoint.newest(tmp_path, checkpoint.read_meta)["step"] == end


def test_wrong_actors_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["act", str(tmp_path), "--shard", "0", "--patience", "0.1"]) == 2
    assert "no weights have come to" in capsys.readouterr().err
    both = [
        "train",
        "dreamer_v3",
        "--env",
        "cartpole",
        "--actors",
        "2",
        "--shards",
        "4",
        "--logdir",
        str(tmp_path / "x"),
    ]
    assert main(both) == 2
    assert "--actors N makes N shards of a learner that is one process" in capsys.readouterr().err


def test_chunks_are_whole_and_in_order(tmp_path: Path) -> None:
    import numpy as np

    writer = chunks.ChunkWriter(tmp_path, 4, 3)
    for i in range(10):
        flags = {key: np.zeros(2, bool) for key in chunks.FLAGS}
        writer.add({"reward": np.full(2, i, np.float32), **flags}, updates=10 * i)
    assert chunks.chunk_numbers(tmp_path) == [3, 4]
    rows, note = chunks.read_chunk(chunks.chunk_path(tmp_path, 4))
    assert rows["reward"][:, 0].tolist() == [4, 5, 6, 7] and note == {"updates": "40"}
    writer.flush()
    assert len(chunks.read_chunk(chunks.chunk_path(tmp_path, 5))[0]["reward"]) == 2
