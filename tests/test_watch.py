"""Looking at a run while it trains: evaluations, the best checkpoint, films, other logs, callbacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastwm
from fastwm.errors import FastwmError
from fastwm.replay import Replay
from fastwm.runner import checkpoint
from fastwm.runner.log import read_lines
from fastwm.runner.sinks import TensorBoard
from fastwm.runner.watch import best_score
from tests.agents_under_test import TINY
from tests.test_video import Pictures

RUN: dict[str, Any] = {
    "env": Pictures, "steps": 120, "num_envs": 2, "batch_size": 2, "batch_length": 8, "train_ratio": 1.0,
    "env_args": {"size": "16"}, "save_every": 0.0, "log_every": 0.0, "agent": TINY["dreamer_v3"],
}  # fmt: skip


def weights(logdir: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoints(logdir)[0] / checkpoint.WEIGHTS)


def test_a_run_is_watched_and_learns_the_same(tmp_path: Path) -> None:
    seen: list[int] = []
    fastwm.train("dreamer_v3", logdir=tmp_path / "plain", **RUN)
    fastwm.train("dreamer_v3", logdir=tmp_path / "watched", eval_every=40, eval_episodes=1, video_every=50, keep=3,
                 callbacks=[lambda trainer: seen.append(trainer.step)], **RUN)  # fmt: skip
    plain, watched = weights(tmp_path / "plain"), weights(tmp_path / "watched")
    assert all(torch.equal(watched[key], value) for key, value in plain.items())
    assert seen == list(range(2, 122, 2))

    run = tmp_path / "watched"
    assert len(checkpoint.checkpoints(run)) == 3 and len(checkpoint.checkpoints(tmp_path / "plain")) == 2
    evaluated = [line for line in read_lines(run / "metrics.jsonl") if "eval/return" in line]
    assert [line["step"] for line in evaluated] == [40, 80, 120] and evaluated[0]["eval/best"] == 9
    (best,) = checkpoint.checkpoints(run / "best")
    assert best.name == f"{40:012d}" and best_score(run) == 9
    first = load_file(best / checkpoint.WEIGHTS)
    loaded = dict(fastwm.load(run, best=True).named_parameters())
    assert all(torch.equal(p, first[key]) for key, p in loaded.items())
    assert fastwm.evaluate(run, episodes=1, env=Pictures, best=True)["mean"] == 9
    films = {path.name for path in (run / "videos").glob("*.gif")}
    assert films == {f"{kind}-{step:012d}{key}.gif" for step in (50, 100)
                     for kind, key in (("episode", ""), ("dream", "-image"))}  # fmt: skip
    with pytest.raises(FastwmError, match="train with --eval-every"):
        fastwm.load(tmp_path / "plain", best=True)


def test_a_callback_ends_the_run_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def enough(trainer: Any) -> None:
        if trainer.step >= 40:
            trainer.stop = "enough"

    fastwm.train("dreamer_v3", logdir=tmp_path, callbacks=[enough], **RUN)
    assert "enough: saved at step 40" in capsys.readouterr().out
    assert checkpoint.checkpoints(tmp_path)[0].name == f"{40:012d}"


def test_peeking_leaves_the_replay_as_it_was() -> None:
    replays = [Replay(100, 2, 3, seed=0) for _ in range(2)]
    for replay in replays:
        for step in range(20):
            row = {key: torch.tensor([step == 0] * 2) for key in ("is_first", "is_last")}
            replay.add(row | {"x": torch.full((2,), step)})
    with replays[0].unchanged():
        replays[0].sample(5)
    assert all(torch.equal(replays[0].sample(4)["x"], replays[1].sample(4)["x"]) for _ in range(6))


def test_tensorboard_shows_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from PIL import Image

    Image.new("RGB", (4, 6)).save(tmp_path / "film.gif", save_all=True, append_images=[Image.new("RGB", (4, 6), "red")])
    sink = TensorBoard(tmp_path)
    sink.scalars(3, {"episode/return": 2.5})
    sink.picture(3, "video/episode", tmp_path / "film.gif")
    sink.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    assert b"episode/return" in content and b"video/episode" in content
    assert (tmp_path / "film.gif").read_bytes() in content


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    fastwm.train("dreamer_v3", logdir=tmp_path, wandb=True, video_every=60, **RUN)
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"episode/return" in log.read_bytes()
    (media,) = {path.parent for path in (tmp_path / "wandb").rglob("*.gif")}
    assert media.name == "video"
